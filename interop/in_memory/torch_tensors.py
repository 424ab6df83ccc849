"""Tensors of PyTorch as NumPy arrays and back, in every dtype that both have."""

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxllm.interop.formats.pytorch.storage_views import WRITABLE_DTYPES

if TYPE_CHECKING:
    from torch import Tensor

_BY_NAME = {dtype.name: dtype for dtype in WRITABLE_DTYPES}
# Dtypes that NumPy has of its own; others cross as integers of the same size.
_SHARED = {name for name, dtype in _BY_NAME.items() if dtype.isbuiltin == 1}


def is_tensor(value: object) -> bool:
    """Whether a value is a tensor of PyTorch, which is not imported to find out."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def why_unreadable(tensor: "Tensor") -> str | None:
    """Returns why a tensor has no numbers that NumPy can hold, and what to do; None if it has."""
    import torch
    from torch.nn.parameter import is_lazy
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if is_lazy(tensor):
        return "is not initialized: call the module once first"
    if tensor.is_meta or "FakeTensor" in type(tensor).__name__:
        return "is on the meta device, which holds no numbers: load the weights first"
    if tensor.is_nested or tensor.layout != torch.strided:
        return f"is of layout {tensor.layout}: make it dense first"
    if is_traceable_wrapper_subclass(tensor):
        return f"is a {type(tensor).__name__}, which computes its numbers: dequantize it first"
    if (name := _name_of(tensor)) not in _BY_NAME:
        return f"is torch.{name}, which NumPy does not have: convert it first"
    return None


def numpy_dtype(tensor: "Tensor") -> np.dtype:
    """Returns the dtype of a readable tensor as NumPy's, which `ml_dtypes` extends."""
    return _BY_NAME[_name_of(tensor)]


def torch_dtype(dtype: np.dtype) -> Any:
    """Returns NumPy's dtype as PyTorch's."""
    import torch

    return getattr(torch, dtype.name)


def to_numpy(tensor: "Tensor") -> np.ndarray:
    """Returns a tensor as an array: a view of its memory if it is on the host, else a copy."""
    held = tensor.detach().cpu().resolve_conj().resolve_neg()
    dtype = numpy_dtype(held)
    if dtype.name in _SHARED:
        return held.numpy()
    return held.view(torch_dtype(_integers(dtype))).numpy().view(dtype)


def from_numpy(array: np.ndarray) -> "Tensor":
    """Returns a writable array as a tensor that shares its memory."""
    import torch

    if array.dtype.name in _SHARED:
        return torch.from_numpy(array)
    bits = array.view(_integers(array.dtype))
    return torch.from_numpy(bits).view(torch_dtype(array.dtype))


def _name_of(tensor: "Tensor") -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _integers(dtype: np.dtype) -> np.dtype:
    """Returns the dtype of integers of the same size."""
    return np.dtype(f"i{dtype.itemsize}")
