"""Matrices of 4-bit floats that share a power of two by 32, as gpt-oss was released.

Open Compute Project, 2023, "OCP Microscaling Formats (MX) Specification", MXFP4: elements are
E2M1, two in a byte, the first in its low half; the scale is E8M0.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.boxes import Box

from .decoded_tensor import DecodedTensor, check_dtypes, check_shapes

BLOCKS, SCALES = "_blocks", "_scales"
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
VALUES = np.array([*MAGNITUDES, *(-x for x in MAGNITUDES)], np.float32)
SIZE = 32  # elements of a block
EXPONENT_BIAS = 127


def decode(
    tensors: Mapping[str, StoredTensor],
    settings: Mapping[str, Any],
    dtype: np.dtype,
    problems: list[str],
) -> dict[str, StoredTensor]:
    """Returns the tensors of a checkpoint with these matrices decoded; see `float8.decode`.

    The blocks lie along the rows of `[outputs, inputs]`; the tensor is read as transformers has
    it, `[inputs, outputs]`.
    """
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        owner = name.removesuffix(BLOCKS)
        if owner == name:
            if name.removesuffix(SCALES) + BLOCKS not in tensors:
                found[name] = tensor
        elif (scales := tensors.get(owner + SCALES)) is None:
            problems.append(f"{name} has no {owner}{SCALES}")
        elif _fit(tensor, scales, problems):
            found[owner] = _decoded(owner, tensor, scales, dtype)
    return found


def _fit(blocks: StoredTensor, scales: StoredTensor, problems: list[str]) -> bool:
    if len(blocks.shape) < 3 or blocks.shape[-1] != SIZE // 2:
        shape = list(blocks.shape)
        problems.append(f"{blocks.name} has shape {shape}, expected [..., {SIZE // 2}]")
        return False
    is_bytes = check_dtypes(problems, ("uint8",), blocks, scales)
    return check_shapes(problems, (scales, blocks.shape[:-1])) and is_bytes


def _decoded(
    name: str, blocks: StoredTensor, scales: StoredTensor, dtype: np.dtype
) -> DecodedTensor:
    *lead, outputs, groups, _ = blocks.shape
    inputs = groups * SIZE

    def decode_box(box: Box) -> np.ndarray:
        *first, (low, high), rows = box
        part = low // SIZE, -(-high // SIZE)
        packed = blocks.read([*first, rows, part, (0, SIZE // 2)])
        exponent = scales.read([*first, rows, part]).astype(np.int32) - EXPONENT_BIAS
        values = VALUES[np.stack([packed & 15, packed >> 4], -1)]
        with np.errstate(over="ignore"):
            scaled = np.ldexp(values.reshape(*exponent.shape, SIZE), exponent[..., None])
        whole = scaled.reshape(*exponent.shape[:-1], -1)
        start = part[0] * SIZE
        return whole[..., low - start : high - start].swapaxes(-1, -2)

    matrix = inputs * outputs
    strides = [matrix * int(np.prod(lead[i + 1 :])) for i in range(len(lead))]
    return DecodedTensor(
        *(name, dtype, (*lead, inputs, outputs), blocks.path, blocks.offset),
        strides=(*strides, 1, inputs),
        decode=decode_box,
        storage="mxfp4",
        parts=(blocks, scales),
    )
