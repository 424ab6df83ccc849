"""Prefixes of training wrappers are removed from tensor names."""

import numpy as np
import pytest

from jaxllm.interop.formats.pytorch.wrapped_names import (
    plain_name,
    strip_wrappers,
    with_base_prefix,
)
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor


@pytest.mark.parametrize(
    ("wrapped", "plain"),
    [
        ("module.layers.0.w", "layers.0.w"),
        ("module.module._orig_mod.w", "w"),
        ("layers.0._checkpoint_wrapped_module.w", "layers.0.w"),
        ("_fsdp_wrapped_module.layers.0._fsdp_wrapped_module.w", "layers.0.w"),
        ("a.module.w", "a.module.w"),
        ("module", "module"),
    ],
)
def test_wrapper_prefixes_are_removed(wrapped, plain):
    assert plain_name(wrapped) == plain


def test_tensors_get_their_plain_names(tmp_path):
    tensor = StoredTensor("module.w", np.dtype(float), (2,), tmp_path / "x", 0)
    assert strip_wrappers({"module.w": tensor})["w"].name == "w"
    with pytest.raises(CheckpointError, match=r"w and module\.w are both w"):
        strip_wrappers({"w": tensor, "module.w": tensor})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["model.layers.0.w", "lm_head.weight"], ["model.layers.0.w", "lm_head.weight"]),
        (["layers.0.w", "norm.weight"], ["model.layers.0.w", "model.norm.weight"]),
        (["layers.0.w", "score.weight"], ["model.layers.0.w", "score.weight"]),
        (
            ["model.model.layers.0.w", "model.lm_head.weight"],
            ["model.layers.0.w", "lm_head.weight"],
        ),
        (["model.layers.0.w"], ["model.layers.0.w"]),
        (["a", "b"], ["a", "b"]),
    ],
)
def test_names_have_the_prefix_of_a_model_with_a_head(given, expected, tmp_path):
    tensors = {n: StoredTensor(n, np.dtype(float), (2,), tmp_path, 0) for n in given}
    assert list(with_base_prefix(tensors, "model.")) == expected
    assert list(with_base_prefix(tensors, "")) == given
