"""Matrices as the library compressed-tensors saves them: integers or 8-bit floats with scales.

The weight is `(number - zero point) * scale`, computed in the scales' dtype, as its `decompress`
does. Numbers of fewer than 8 bits are packed into words along rows, zero points along columns.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.boxes import Box

from .blocks import Blocks, block_size
from .decoded_tensor import Decode, DecodedTensor, check_shapes
from .packed_integers import PackedIntegers, num_words

PACKED, SHAPE, SCALE = "weight_packed", "weight_shape", "weight_scale"
ZERO, GROUPS = "weight_zero_point", "weight_g_idx"
PARTS = (PACKED, SHAPE, SCALE, ZERO, GROUPS)
# Of activations and caches: the model computes with those in its own dtype.
OF_INPUTS = (
    *("input_scale", "input_zero_point", "input_global_scale"),
    *("output_scale", "output_zero_point", "q_scale", "k_scale", "v_scale"),
)
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
    problems += [
        f"quantization_config.{name} is not supported: decompress it with compressed-tensors first"
        for name in ("sparsity_config", "transform_config")
        if settings.get(name)
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
    shape, read, bits = numbers.shape, numbers.read, 8 * numbers.dtype.itemsize
    if PACKED in parts:
        shape = tuple(map(int, parts[SHAPE].read()))
        bits = _bits(settings, numbers.shape, shape)
        if bits == 0:
            problems.append(f"{numbers.name} has no shape of integers of {name}, {list(shape)}")
            return None
        read = _signed(PackedIntegers(numbers, bits, len(shape) - 1))
    grid = scale.shape if len(scale.shape) == len(shape) else (1,) * len(shape)
    stated = _stated_size(settings, shape)
    columns = None if GROUPS not in parts else parts[GROUPS].read().astype(np.int64)
    size = block_size(shape[-2:], grid[-2:], stated) if columns is None else (1, 1)
    if size is None or (grid != scale.shape and scale.shape not in ((), (1,))):
        problems.append(
            f"{scale.name} has shape {list(scale.shape)}, which does not fit {name}, {list(shape)}"
        )
        return None
    scale_of = Blocks(_reader(scale), size, columns)
    zero_of = None
    if zero is not None and zero.shape != scale.shape and PACKED in parts:
        packed_shape = *grid[:-2], num_words(grid[-2], bits), grid[-1]
        if not check_shapes(problems, (zero, packed_shape)):
            return None
        zero_of = Blocks(_signed(PackedIntegers(zero, bits, len(shape) - 2)), size, columns)
    elif zero is not None:
        zero_of = Blocks(_reader(zero), size, columns)

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


def _signed(packed: PackedIntegers) -> Decode:
    """Returns a function that reads signed integers, which are stored above their smallest."""
    return lambda box: packed.read(box) - (1 << (packed.bits - 1))


def _reader(tensor: StoredTensor) -> Decode:
    if len(tensor.shape) < 2:
        return lambda box: tensor.read().reshape((1,) * len(box))
    return tensor.read


def _weights(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns what the config says on weights, by group of layers."""
    groups = settings.get("config_groups")
    found = [] if not isinstance(groups, Mapping) else list(groups.values())
    each = [group.get("weights") for group in found if isinstance(group, Mapping)]
    return [weights for weights in each if isinstance(weights, Mapping)]


def _bits(settings: Mapping[str, Any], packed: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """Returns the bits of a packed integer: of those that the config names, what the words hold."""
    stated = {weights.get("num_bits") for weights in _weights(settings)}
    fitting = [
        bits
        for bits in range(1, 9)
        if bits in stated and packed == (*shape[:-1], num_words(shape[-1], bits))
    ]
    return fitting[0] if len(fitting) == 1 else 0


def _stated_size(settings: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Returns the rows and columns of a block, if the config says them for all layers alike."""
    stated = {tuple(weights.get("block_structure") or ()) for weights in _weights(settings)}
    only = stated.pop() if len(stated) == 1 else ()
    return (only[0], only[1]) if len(only) == 2 else None
