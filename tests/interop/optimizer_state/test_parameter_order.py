"""Numbered parameters are named by their shapes, if there is only one way."""

from types import SimpleNamespace

import numpy as np
import pytest
import source_cases
import torch

from jaxllm.interop import CheckpointError
from jaxllm.interop.families import FAMILIES
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.optimizer_state.parameter_order import (
    build_without_weights,
    find_order,
    named_groups,
    read_names,
)


def test_names_are_assigned_to_groups_by_shape():
    names = {"embed": (9, 4), "norm": (4,), "w": (4, 4), "bias": (4,)}
    groups = [[(9, 4), (4, 4)], [(4,), (4,)]]
    assert named_groups(groups, names) == [["embed", "w"], ["norm", "bias"]]


@pytest.mark.parametrize(
    ("groups", "given"),
    [
        ([[(4,), (5,)]], "group 0 has 2"),
        ([[(4,)]], "group 0 has 1"),
        ([[(4,), (4,)], [(4,)]], "group 0 has 2, group 1 has 1"),
        ([], "there is no group"),
    ],
)
def test_groups_that_do_not_fit_are_named_with_what_to_do(groups, given):
    with pytest.raises(CheckpointError) as error:
        named_groups(groups, {"a": (4,), "b": (4,)})
    message = str(error.value)
    assert f"({given}), and the model's 2 parameters, in their order, fit the groups" in message
    assert "by shape in no way: give the state with names, as `get_optimizer_state" in message
    assert "; or give a file of the names" in message


def test_the_parameters_that_may_be_in_several_groups_are_named():
    names = {"w": (4, 4), **dict.fromkeys("abcde", (4,)), "head": (9, 4)}
    with pytest.raises(CheckpointError) as error:
        named_groups([[(4, 4), (4,), (9, 4)], [(4,)] * 4], names)
    message = str(error.value)
    assert "(group 0 has 3, group 1 has 4), and the model's 7 parameters" in message
    assert "in several ways, such as a in 0 or 1, b in 0 or 1, c in 0 or 1 and 2 more: " in message
    assert "give the state with names" in message
    assert "file" not in message  # which tells their order, but not their groups


def test_a_parameter_is_only_named_if_it_may_be_in_several_groups_at_the_end():
    """At first `a` may be in either group, but only one leaves the right places to the others."""
    names = {"a": (4,), "b": (5,), "c": (4,)}
    assert named_groups([[(4,), (5,)], [(4,)]], names) == [["a", "b"], ["c"]]


def test_names_are_read_from_a_file(tmp_path):
    (tmp_path / "names").write_text("b\na\n")
    assert read_names(tmp_path / "names") == ["b", "a"]
    (tmp_path / "names").write_text("a\na\n")
    with pytest.raises(CheckpointError, match="a occurs more than once"):
        read_names(tmp_path / "names")
    (tmp_path / "names").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="names is not UTF-8"):
        read_names(tmp_path / "names")
    (tmp_path / "names").write_text("\n".join(map(str, range(100_000))))
    assert len(read_names(tmp_path / "names")) == 100_000


def test_torch_files_keep_the_order_and_others_do_not(tmp_path):
    family = SimpleNamespace(reference=None, format="meta", name="meta-llama")

    def stored(suffix: str) -> dict[str, StoredTensor]:
        path = tmp_path / f"x{suffix}"
        return {name: StoredTensor(name, np.dtype(float), (1,), path, 0) for name in "ba"}

    assert find_order(family, {}, stored(".pth")) == ["b", "a"]
    with pytest.raises(
        CheckpointError, match="the order of the parameters of meta-llama is unknown"
    ):
        find_order(family, {}, stored(".safetensors"))


def test_a_model_without_weights_has_its_buffers():
    """The parameters take no memory, and tied ones stay tied."""
    fields = {"model_type": "nima-gpt", **source_cases.CASES["nima-gpt"], "position": "sinusoidal"}
    [family] = [family for family in FAMILIES if family.name == "nima-gpt"]
    module = build_without_weights(family, fields)
    assert all(parameter.is_meta for parameter in module.parameters())
    assert module.output_projection.weight is module.token_embedding.weight
    buffers = dict(module.named_buffers())
    expected = dict(family.reference(fields).named_buffers())
    assert buffers.keys() == expected.keys() != set()
    assert all(torch.equal(buffers[name], expected[name]) for name in expected)
    assert not torch.nn.Linear(2, 2).weight.is_meta  # modules that are built afterwards
