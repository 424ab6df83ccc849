"""Matrices of 8-bit floats with a scale for each block, as DeepSeek-V3 was released.

DeepSeek-AI, 2024, "DeepSeek-V3 Technical Report", section 3.3: the scale belongs to a tile of
128 x 128 weights, and a weight is the product of its float and the scale.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.boxes import Box

from .blocks import Blocks, block_size
from .decoded_tensor import DecodedTensor, pair_of_sizes

FLOATS = "float8"  # the beginning of the names of their dtypes
# Of the inputs of products: the model computes with inputs in its own dtype.
OF_INPUTS = (".activation_scale", ".input_scale", ".input_scale_ub", ".k_scale", ".v_scale")
EXPONENT_BIAS = 127  # of scales that are powers of two, kept as the byte of their exponent


def decode(
    tensors: Mapping[str, StoredTensor],
    settings: Mapping[str, Any],
    dtype: np.dtype,
    problems: list[str],
    suffix: str = "_scale_inv",
) -> dict[str, StoredTensor]:
    """Returns the tensors of a checkpoint with these matrices decoded, without their scales.

    Args:
        tensors: the tensors by name.
        settings: the `quantization_config`.
        dtype: what matrices are decoded to.
        problems: gets a message on each matrix that cannot be decoded.
        suffix: what follows the name of a matrix in that of its scales.
    """
    found: dict[str, StoredTensor] = {}
    stated = pair_of_sizes(settings.get("weight_block_size"), problems, "weight_block_size")
    encoded = {name for name, tensor in tensors.items() if tensor.dtype.name.startswith(FLOATS)}
    encoded -= {name + suffix for name in encoded}  # scales may be 8-bit floats as well
    for name, tensor in tensors.items():
        if name.removesuffix(suffix) in encoded - {name} or name.endswith(OF_INPUTS):
            continue
        if name not in encoded:
            found[name] = tensor
        elif (scale := tensors.get(name + suffix)) is None:
            problems.append(f"{name} is {tensor.dtype.name}, but {name}{suffix} is missing")
        else:
            decoded = scaled_matrix(tensor, scale, stated, dtype, problems)
            found |= {} if decoded is None else {name: decoded}
    return found


def scaled_matrix(
    tensor: StoredTensor,
    scale: StoredTensor,
    stated: tuple[int, int] | None,
    dtype: np.dtype,
    problems: list[str],
) -> StoredTensor | None:
    """Returns a matrix, or several, times the scales of its blocks.

    Args:
        tensor: the numbers.
        scale: the scales: one, one for each row, or a grid.
        stated: the rows and columns of a block as the config says, or None.
        dtype: what it is decoded to.
        problems: gets a message if the shapes do not fit.
    """
    *lead, rows, columns = tensor.shape if len(tensor.shape) > 1 else (1, 1, *tensor.shape)
    grid = _grid_of(scale.shape, len(tensor.shape))
    size = None if grid is None else block_size((rows, columns), grid[-2:], stated)
    if len(tensor.shape) < 2 or grid is None or size is None or grid[:-2] != tuple(lead):
        problems.append(
            f"{scale.name} has shape {list(scale.shape)}, which is no grid of the blocks of "
            f"{tensor.name}, of shape {list(tensor.shape)}"
        )
        return None
    blocks = Blocks(lambda box: _read_scale(scale, box), size)

    def decode_box(box: Box) -> np.ndarray:
        return tensor.read(box).astype(np.float32) * blocks.of(box)

    kind = f"{tensor.dtype.name} in blocks of {size[0]} x {size[1]}"
    return DecodedTensor(
        *(tensor.name, dtype, tensor.shape, tensor.path, tensor.offset),
        decode=decode_box,
        storage=kind,
        parts=(tensor, scale),
    )


def _grid_of(shape: tuple[int, ...], rank: int) -> tuple[int, ...] | None:
    """Returns the shape of a grid of scales, given as such or as one number."""
    if len(shape) == rank:
        return shape
    return (1,) * rank if shape in ((), (1,)) else None


def _read_scale(scale: StoredTensor, box: Box) -> np.ndarray:
    if len(scale.shape) < 2:
        return _as_float(scale.read()).reshape((1,) * len(box))
    return _as_float(scale.read(box))


def _as_float(scale: np.ndarray) -> np.ndarray:
    if scale.dtype == np.uint8:
        return np.exp2(scale.astype(np.float32) - EXPONENT_BIAS)
    return scale.astype(np.float32)
