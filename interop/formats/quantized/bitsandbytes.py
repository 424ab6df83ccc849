"""Linear layers as bitsandbytes saves them: 8-bit integers by row, or 4-bit codes by block.

Dettmers et al., 2022, "LLM.int8()": a row's largest magnitude, `SCB`, is 127. Dettmers et al.,
2023, "QLoRA": a code is one of 16 numbers, `quant_map`, times its block's largest magnitude,
`absmax`, which may itself be codes of blocks.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.boxes import Box

from .decoded_tensor import DecodedTensor, check_dtypes, check_shapes

ROW_MAXIMA, FORMAT = "SCB", "weight_format"
STATE = "weight.quant_state.bitsandbytes__"
ABSMAX, CODES = "weight.absmax", "weight.quant_map"
NESTED_ABSMAX, NESTED_CODES = "weight.nested_absmax", "weight.nested_quant_map"
FLOATS = ("float32", "float16", "bfloat16")
PER_UNIT = np.float32(1 / 127)


class Nested(NamedTuple):
    """The largest magnitudes of blocks, as codes of blocks."""

    maxima: StoredTensor  # of the blocks of blocks
    codes: StoredTensor
    size: int
    offset: float


def decode(
    tensors: Mapping[str, StoredTensor],
    settings: Mapping[str, Any],
    dtype: np.dtype,
    problems: list[str],
) -> dict[str, StoredTensor]:
    """Returns the tensors of a checkpoint with these layers decoded; see `float8.decode`."""
    found: dict[str, StoredTensor] = {}
    used: set[str] = set()
    for name in tensors:
        owner, kind = _owner_of(name)
        if not kind or f"{owner}weight" not in tensors:
            continue
        read = _eight_bits if kind == ROW_MAXIMA else _four_bits
        used |= {each for each in tensors if each.startswith(owner) and _is_part(each, owner)}
        decoded = read(owner, kind, tensors, dtype, problems)
        found |= {} if decoded is None else {decoded.name: decoded}
    return {name: tensor for name, tensor in tensors.items() if name not in used} | found


def _owner_of(name: str) -> tuple[str, str]:
    """Returns the prefix of a layer's names, and what its tensor of this name says it is."""
    if name == ROW_MAXIMA or name.endswith(f".{ROW_MAXIMA}"):
        return name.removesuffix(ROW_MAXIMA), ROW_MAXIMA
    owner, marker, kind = name.rpartition(STATE)
    return (owner, kind) if marker else ("", "")


def _is_part(name: str, owner: str) -> bool:
    rest = name.removeprefix(owner)
    return rest in ("weight", ROW_MAXIMA, FORMAT) or rest.startswith("weight.")


def _eight_bits(
    owner: str,
    kind: str,
    tensors: Mapping[str, StoredTensor],
    dtype: np.dtype,
    problems: list[str],
) -> DecodedTensor | None:
    integers, maxima = tensors[f"{owner}weight"], tensors[owner + ROW_MAXIMA]
    if not check_shapes(problems, (maxima, integers.shape[:1])):
        return None

    def decode_box(box: Box) -> np.ndarray:
        row = maxima.read(box[:1]).astype(np.float32)[:, None]
        return integers.read(box).astype(np.float32) * row * PER_UNIT

    return DecodedTensor(
        *(integers.name, dtype, integers.shape, integers.path, integers.offset),
        decode=decode_box,
        storage="bitsandbytes int8",
        parts=(integers, maxima),
    )


def _four_bits(
    owner: str,
    kind: str,
    tensors: Mapping[str, StoredTensor],
    dtype: np.dtype,
    problems: list[str],
) -> DecodedTensor | None:
    packed = tensors[f"{owner}weight"]
    try:
        state = json.loads(tensors[owner + STATE + kind].read().tobytes())
        shape, size = tuple(map(int, state["shape"])), int(state["blocksize"])
        if size < 1 or min(shape) < 1:
            raise ValueError(f"shape {list(shape)}, blocks of {size}")
        nested = None
        maxima, codes = tensors[owner + ABSMAX], tensors[owner + CODES]
        if "nested_blocksize" in state:
            beyond = tensors[owner + NESTED_ABSMAX], tensors[owner + NESTED_CODES]
            nested = Nested(*beyond, int(state["nested_blocksize"]), float(state["nested_offset"]))
            if nested.size < 1:
                raise ValueError(f"nested blocks of {nested.size}")
    except KeyError as error:
        problems.append(f"{packed.name} cannot be decoded: {error.args[0]} is missing")
        return None
    except (ValueError, TypeError) as error:
        problems.append(f"{owner}{STATE}{kind} is no description of {packed.name}: {error}")
        return None
    count = int(np.prod(shape))
    if not _fit(packed, count, (maxima, size), codes, nested, problems):
        return None
    parts = (packed, maxima, codes, *([] if nested is None else nested[:2]))
    return DecodedTensor(
        *(packed.name, dtype, shape, packed.path, packed.offset),
        decode=lambda box: _decode_codes(packed, codes, (maxima, size), nested, shape, box),
        storage=f"bitsandbytes {kind}",
        parts=parts,
    )


def _fit(
    packed: StoredTensor,
    count: int,
    blocks: tuple[StoredTensor, int],
    codes: StoredTensor,
    nested: Nested | None,
    problems: list[str],
) -> bool:
    """Whether tensors have the shapes and dtypes that `count` codes in blocks need."""
    maxima, size = blocks
    num_blocks = -(-count // size)
    shapes = [
        (packed, (-(-count // 2), *packed.shape[1:])),
        (maxima, (num_blocks,)),
        (codes, (16,)),
    ]
    if nested is not None:
        shapes += [(nested.maxima, (-(-num_blocks // nested.size),)), (nested.codes, (256,))]
    return all(
        [
            check_shapes(problems, *shapes),
            check_dtypes(problems, ("uint8",), packed),
            check_dtypes(problems, FLOATS if nested is None else ("uint8",), maxima),
        ]
    )


def _decode_codes(
    packed: StoredTensor,
    codes: StoredTensor,
    blocks: tuple[StoredTensor, int],
    nested: Nested | None,
    shape: tuple[int, ...],
    box: Box,
) -> np.ndarray:
    """Decodes the rows of a box, whose codes are contiguous, and cuts the box out of them."""
    (first, last), *rest = box
    width = int(np.prod(shape[1:]))
    low, high = first * width, last * width
    trailing = [(0, length) for length in packed.shape[1:]]
    stored = packed.read([(low // 2, -(-high // 2)), *trailing]).reshape(-1)
    both = np.stack([stored >> 4, stored & 15], -1).reshape(-1)[low % 2 :][: high - low]
    maxima, size = blocks
    touched = low // size, -(-high // size)
    largest = _largest(maxima, nested, touched)
    of_each = largest[np.arange(low, high) // size - touched[0]]
    rows = (codes.read()[both] * of_each).reshape(last - first, *shape[1:])
    return rows[(slice(None), *(slice(*part) for part in rest))]


def _largest(maxima: StoredTensor, nested: Nested | None, touched: tuple[int, int]) -> np.ndarray:
    found = maxima.read([touched])
    if nested is None:
        return found
    outer = touched[0] // nested.size, -(-touched[1] // nested.size)
    of_outer = nested.maxima.read([outer])[np.arange(*touched) // nested.size - outer[0]]
    return nested.codes.read()[found] * of_outer + np.float32(nested.offset)
