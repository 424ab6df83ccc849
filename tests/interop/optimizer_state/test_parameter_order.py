"""Which parameter a number stands for follows from shapes, if in one way only."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxllm.interop import CheckpointError
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.optimizer_state.parameter_order import find_order, named_groups, read_names


def test_shapes_deal_the_names_out():
    names = {"embed": (9, 4), "norm": (4,), "w": (4, 4), "bias": (4,)}
    groups = [[(9, 4), (4, 4)], [(4,), (4,)]]
    assert named_groups(groups, names) == [["embed", "w"], ["norm", "bias"]]


@pytest.mark.parametrize(
    "groups", [[[(4,)], [(4,)]], [[(4,), (5,)]], [[(4,)]], [[(4,), (4,), (4,)]]]
)
def test_several_ways_and_none_are_refused(groups):
    with pytest.raises(CheckpointError, match="fit in several ways, or in none"):
        named_groups(groups, {"a": (4,), "b": (4,)})


def test_names_are_read_from_a_file(tmp_path):
    (tmp_path / "names").write_text("b\na\n")
    assert read_names(tmp_path / "names") == ["b", "a"]
    (tmp_path / "names").write_text("a\na\n")
    with pytest.raises(CheckpointError, match="a occurs more than once"):
        read_names(tmp_path / "names")


def test_files_of_torch_keep_the_order_and_others_do_not(tmp_path):
    family = SimpleNamespace(reference=None, format="meta", name="meta-llama")

    def stored(suffix: str) -> dict[str, StoredTensor]:
        path = tmp_path / f"x{suffix}"
        return {name: StoredTensor(name, np.dtype(float), (1,), path, 0) for name in "ba"}

    assert find_order(family, {}, stored(".pth")) == ["b", "a"]
    with pytest.raises(CheckpointError, match="in which order meta-llama has its parameters"):
        find_order(family, {}, stored(".safetensors"))
