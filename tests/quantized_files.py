"""Files of quantized tensors, and checks that hold for every codec."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from jaxllm.interop.formats.quantized.codecs import decode_tensors
from jaxllm.interop.formats.quantized.decoded_tensor import DecodedTensor, in_float32
from jaxllm.interop.formats.safetensors_file import SINGLE_NAME, read_checkpoint
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.boxes import slices

SETTINGS = "quantization_config"


def stored(folder: Path, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, StoredTensor]:
    """Writes tensors into a file and returns them as they are read from there."""
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in tensors.items()},
        folder / SINGLE_NAME,
    )
    return read_checkpoint(folder)


def decoded(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    settings: Mapping[str, Any],
    dtype: str = "bfloat16",
) -> Mapping[str, StoredTensor]:
    """Returns tensors in quantized storage, as a checkpoint of them has them."""
    return decode_tensors(stored(folder, tensors), {"dtype": dtype}, settings)


def check(tensor: StoredTensor, expected: torch.Tensor) -> None:
    """A tensor has these bits, read as a whole, by boxes and by rows."""
    assert isinstance(tensor, DecodedTensor)
    wanted = bits(expected)
    whole = tensor.read()
    assert whole.dtype == tensor.dtype
    assert whole.shape == tensor.shape == tuple(expected.shape)
    np.testing.assert_array_equal(bits(whole), wanted)
    rng = np.random.default_rng(0)
    for _ in range(20):
        ends = [sorted(rng.choice(size + 1, 2, replace=False)) for size in tensor.shape]
        box = [(int(low), int(high)) for low, high in ends]
        np.testing.assert_array_equal(bits(tensor.read(box)), wanted[slices(box)])
        (low, high), *rest = box
        rows = tensor.rows("rows", low, high - low)
        np.testing.assert_array_equal(bits(rows.read()), wanted[low:high])
        of_rows = [(0, high - low), *rest]
        np.testing.assert_array_equal(bits(rows.own_box(of_rows)), wanted[slices(box)])


def check_float32(tensor: StoredTensor, expected: torch.Tensor) -> None:
    """A tensor that is asked for in float32 has these bits."""
    (wide,) = in_float32({"": tensor}).values()
    np.testing.assert_array_equal(bits(wide.read()), bits(expected))


def bits(array: Any) -> np.ndarray:
    """Returns the bits of an array or a tensor; one pattern for all that are no numbers."""
    if isinstance(array, torch.Tensor):
        array = array.float().numpy() if array.dtype != torch.float16 else array.numpy()
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    found = np.ascontiguousarray(array).view(f"u{array.itemsize}").copy()
    found[np.isnan(array)] = 0x7E00
    return found
