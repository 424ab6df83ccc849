"""Matrices as the library compressed-tensors saves them: integers or 8-bit floats with scales.

The weight is `(number - zero point) * scale`, computed in the scales' dtype, as its `decompress`
does. Numbers of fewer than 8 bits are packed into words along rows, zero points along columns.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.boxes import Box

from .blocks import Blocks, block_size
from .decoded_tensor import Decode, DecodedTensor, check_dtypes, check_shapes, pair_of_sizes
from .packed_integers import PackedIntegers, num_words

PACKED, SHAPE, SCALE = "weight_packed", "weight_shape", "weight_scale"
ZERO, GROUPS = "weight_zero_point", "weight_g_idx"
PARTS = (PACKED, SHAPE, SCALE, ZERO, GROUPS)
# Of activations and caches: the model computes with those in its own dtype.
OF_INPUTS = (
    *("input_scale", "input_zero_point", "input_global_scale"),
    *("output_scale", "output_zero_point", "q_scale", "k_scale", "v_scale"),
)
NUMBERS = ("int8", "uint8", "float8_e4m3fn", "float8_e5m2")  # of weights that are not packed
WORDS = ("int32", "uint32")
FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "dense")


def decode(
    tensors: Mapping[str, StoredTensor],
    settings: Mapping[str, Any],
    dtype: np.dtype,
    problems: list[str],
) -> dict[str, StoredTensor]:
    """Returns the tensors of a checkpoint with these matrices decoded; see `float8.decode`."""
    form = settings.get("format", "dense")
    if form not in FORMATS:
        problems.append(
            f"quantization_config.format={form!r} is not supported, only {', '.join(FORMATS)}"
        )
    sparsity = settings.get("sparsity_config") or {}
    is_sparse = not isinstance(sparsity, Mapping) or sparsity.get("format", "dense") != "dense"
    problems += [
        f"quantization_config.{name} is not supported: decompress it with compressed-tensors first"
        for name, is_used in {
            "sparsity_config": is_sparse,
            "transform_config": bool(settings.get("transform_config")),
        }.items()
        if is_used
    ]
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        owner, dot, last = name.rpartition(".")
        prefix = owner + dot
        if last == SCALE:
            parts = {part: tensors[prefix + part] for part in PARTS if prefix + part in tensors}
            numbers = tensors.get(prefix + "weight", parts.get(PACKED))
            decoded = _decoded(f"{prefix}weight", numbers, parts, settings, dtype, problems)
            found |= {} if decoded is None else {decoded.name: decoded}
        elif last not in OF_INPUTS and (
            prefix + SCALE not in tensors or last not in (*PARTS, "weight")
        ):
            found[name] = tensor
    return found


def _decoded(
    name: str,
    numbers: StoredTensor | None,
    parts: Mapping[str, StoredTensor],
    settings: Mapping[str, Any],
    dtype: np.dtype,
    problems: list[str],
) -> DecodedTensor | None:
    scale, zero = parts[SCALE], parts.get(ZERO)
    if numbers is None or (PACKED in parts and SHAPE not in parts):
        missing = name if numbers is None else f"{name}_shape"
        problems.append(f"{scale.name} belongs to {missing}, which is missing")
        return None
    shape, read, bits = numbers.shape, numbers.read, 0
    if PACKED in parts:
        shape = tuple(map(int, parts[SHAPE].read()))
        bits = _bits(settings, numbers, shape, problems)
        read = _signed(PackedIntegers(numbers, bits, len(shape) - 1))
    is_right = check_dtypes(problems, WORDS if PACKED in parts else NUMBERS, numbers)
    if not is_right or (PACKED in parts and not bits):
        return None
    grid = scale.shape if len(scale.shape) == len(shape) else (1,) * len(shape)
    columns = None if GROUPS not in parts else parts[GROUPS].read().astype(np.int64)
    size = _size_of_blocks(shape, grid, columns, _stated_size(settings, problems))
    if size is None or (grid != scale.shape and scale.shape not in ((), (1,))):
        problems.append(
            f"{scale.name} has shape {list(scale.shape)}, which does not fit {name}, {list(shape)}"
        )
        return None
    scale_of = Blocks(_reader(scale), size, columns)
    read_zero = None if zero is None else _reader(zero)
    if zero is not None and PACKED in parts and zero.shape != scale.shape:
        packed_shape = *grid[:-2], num_words(grid[-2], bits), grid[-1]
        if not check_shapes(problems, (zero, packed_shape)):
            return None
        read_zero = _signed(PackedIntegers(zero, bits, len(shape) - 2))
    zero_of = None if read_zero is None else Blocks(read_zero, size, columns)

    def decode_box(box: Box) -> np.ndarray:
        scales, found = scale_of.of(box), read(box).astype(np.float32)
        if zero_of is not None:
            found = found - zero_of.of(box).astype(np.float32)
        return (found * scales.astype(np.float32)).astype(scales.dtype)

    kind = numbers.dtype.name if PACKED not in parts else f"packed int{bits}"
    return DecodedTensor(
        *(name, dtype, shape, numbers.path, numbers.offset),
        decode=decode_box,
        storage=f"compressed-tensors {kind}",
        parts=(numbers, *(part for part in parts.values() if part is not numbers)),
    )


def _size_of_blocks(
    shape: tuple[int, ...],
    grid: tuple[int, ...],
    columns: np.ndarray | None,
    stated: tuple[int, int] | None,
) -> tuple[int, int] | None:
    """Returns the rows and columns of a block, (1, 1) if columns say theirs; None if none fits."""
    if len(shape) < 2 or (grid[:-2] != shape[:-2] and set(grid) != {1}):
        return None
    if columns is None:
        return block_size(shape[-2:], grid[-2:], stated)
    is_known = columns.shape == shape[-1:] and columns.min() >= 0 and columns.max() < grid[-1]
    return (1, 1) if is_known and grid[-2] == shape[-2] else None


def _signed(packed: PackedIntegers) -> Decode:
    """Returns a function that reads signed integers, which are stored above their smallest."""
    return lambda box: packed.read(box) - (1 << (packed.bits - 1))


def _reader(tensor: StoredTensor) -> Decode:
    if math.prod(tensor.shape) == 1:
        return lambda box: tensor.read().reshape((1,) * len(box))
    return tensor.read


def _weights(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns what the config says on weights, by group of layers."""
    groups = settings.get("config_groups")
    found = [] if not isinstance(groups, Mapping) else list(groups.values())
    each = [group.get("weights") for group in found if isinstance(group, Mapping)]
    return [weights for weights in each if isinstance(weights, Mapping)]


def _bits(
    settings: Mapping[str, Any], words: StoredTensor, shape: tuple[int, ...], problems: list[str]
) -> int:
    """Returns the bits of a packed integer: of those that the config names, what the words hold.

    If that is not one number, 0, with a problem.
    """
    stated = [weights.get("num_bits") for weights in _weights(settings)]
    fitting = [
        bits
        for bits in range(1, 9)
        if bits in stated and words.shape == (*shape[:-1], num_words(shape[-1], bits))
    ]
    if len(fitting) == 1:
        return fitting[0]
    problems.append(
        f"{words.name} of shape {list(words.shape)} does not hold the numbers of shape "
        f"{list(shape)} in any number of bits that quantization_config names"
    )
    return 0


def _stated_size(settings: Mapping[str, Any], problems: list[str]) -> tuple[int, int] | None:
    """Returns the rows and columns of a block, if the config says them for all layers alike."""
    stated = [weights.get("block_structure") for weights in _weights(settings)]
    is_alike = bool(stated) and all(one == stated[0] for one in stated)
    return pair_of_sizes(stated[0], problems, "block_structure") if is_alike else None
