"""Files of every version of PyTorch are told apart by their first bytes."""

import numpy as np
import pytest
import torch

from jaxllm.interop.formats.pytorch.saved import torch_file


@pytest.mark.parametrize("is_new", [True, False])
def test_both_kinds_are_read(tmp_path, is_new):
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5)}
    torch.save(tensors, tmp_path / "x", _use_new_zipfile_serialization=is_new)
    found = torch_file.read_header(tmp_path / "x")
    assert list(found) == ["a", "b"]
    np.testing.assert_array_equal(found["a"].read(), tensors["a"])
    value = torch_file.read_value(tmp_path / "x")
    np.testing.assert_array_equal(value["b"].read(), tensors["b"])
