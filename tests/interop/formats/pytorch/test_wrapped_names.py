"""Prefixes of training wrappers are removed from tensor names."""

import numpy as np
import pytest

from jaxllm.interop.formats.pytorch.wrapped_names import (
    plain_name,
    strip_wrappers,
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
