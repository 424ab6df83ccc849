"""Linear layers of packed integers with a scale and a zero point for each group of inputs.

GPTQ (Frantar et al., 2022) and AWQ (Lin et al., 2023) as they are released: the weight of output n
and input k is `scale[g(k), n] * (integer[k, n] - zero[g(k), n])`, computed in the scales' dtype.
GPTQ stores each zero point less one. One is added to what is stored, as AutoGPTQ's kernels do: all
bits set then stand for `2**bits`, not for zero.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.boxes import Box

from .blocks import Blocks
from .decoded_tensor import DecodedTensor, check_dtypes, check_shapes
from .packed_integers import WORD, PackedIntegers, num_words

INTEGERS, ZEROS, SCALES, GROUPS = ".qweight", ".qzeros", ".scales", ".g_idx"
FIRST_VERSION, SECOND_VERSION = "gptq", "gptq_v2"  # the second stores zero points as they are
# The place in a word of each of eight neighbouring outputs, as AWQ's kernels expect them.
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)

WORDS = ("int32", "uint32")

Layer = Callable[[str, Mapping[str, StoredTensor], np.dtype, list[str]], StoredTensor | None]


def decode_gptq(
    tensors: Mapping[str, StoredTensor],
    settings: Mapping[str, Any],
    dtype: np.dtype,
    problems: list[str],
) -> dict[str, StoredTensor]:
    """Returns the tensors of a checkpoint with GPTQ's layers decoded; see `float8.decode`."""
    bits = _bits(settings, problems, (2, 3, 4, 8))
    version = settings.get("checkpoint_format", FIRST_VERSION)
    if version not in (FIRST_VERSION, SECOND_VERSION) or settings.get("is_marlin_format"):
        problems.append(
            f"quantization_config.checkpoint_format={version!r} (is_marlin_format="
            f"{settings.get('is_marlin_format', False)!r}) is not supported, only "
            f"{FIRST_VERSION!r} or {SECOND_VERSION!r}"
        )
        return dict(tensors)
    offset = 0 if version == SECOND_VERSION else 1

    def layer(
        name: str, parts: Mapping[str, StoredTensor], to: np.dtype, problems: list[str]
    ) -> StoredTensor | None:
        integers, scales, zeros = parts[INTEGERS], parts[SCALES], parts[ZEROS]
        if len(scales.shape) != 2 or len(integers.shape) != 2:
            problems.append(f"{integers.name} and {scales.name} must be matrices")
            return None
        num_groups, outputs = scales.shape
        of_input = _groups_of(parts, settings, integers.shape[0] * WORD // bits, num_groups)
        if of_input is None:
            problems.append(f"{scales.name} has {num_groups} groups, which do not fit {name}")
            return None
        expected = (integers, (num_words(len(of_input), bits), outputs))
        if not check_shapes(problems, expected, (zeros, (num_groups, num_words(outputs, bits)))):
            return None
        packed = PackedIntegers(integers, bits, 0)
        return _layer(
            name,
            packed,
            PackedIntegers(zeros, bits, 1),
            (scales, of_input),
            offset=offset,
            dtype=to,
            parts=tuple(parts.values()),
            kind=f"gptq of {bits} bits",
        )

    return _decode_layers(tensors, dtype, problems, layer) if bits else dict(tensors)


def decode_awq(
    tensors: Mapping[str, StoredTensor],
    settings: Mapping[str, Any],
    dtype: np.dtype,
    problems: list[str],
) -> dict[str, StoredTensor]:
    """Returns the tensors of a checkpoint with AWQ's layers decoded; see `float8.decode`."""
    bits = _bits(settings, problems, (4,))
    if (version := str(settings.get("version", "gemm")).lower()) != "gemm":
        problems.append(f"quantization_config.version={version!r} is not supported, only 'gemm'")
        return dict(tensors)

    def layer(
        name: str, parts: Mapping[str, StoredTensor], to: np.dtype, problems: list[str]
    ) -> StoredTensor | None:
        integers, scales, zeros = parts[INTEGERS], parts[SCALES], parts[ZEROS]
        if len(scales.shape) != 2 or len(integers.shape) != 2:
            problems.append(f"{integers.name} and {scales.name} must be matrices")
            return None
        (inputs, _), (num_groups, outputs) = integers.shape, scales.shape
        if not num_groups or inputs % num_groups:
            problems.append(f"{scales.name} has {num_groups} groups, which do not fit {name}")
            return None
        words = num_words(outputs, bits)
        if not check_shapes(problems, (integers, (inputs, words)), (zeros, (num_groups, words))):
            return None
        return _layer(
            name,
            PackedIntegers(integers, bits, 1, AWQ_ORDER),
            PackedIntegers(zeros, bits, 1, AWQ_ORDER),
            (scales, np.arange(inputs) // (inputs // num_groups)),
            offset=0,
            dtype=to,
            parts=tuple(parts.values()),
            kind="awq of 4 bits",
        )

    return _decode_layers(tensors, dtype, problems, layer) if bits else dict(tensors)


def _bits(settings: Mapping[str, Any], problems: list[str], known: tuple[int, ...]) -> int:
    """Returns the bits of an integer; 0, with a problem, if they are not known."""
    bits = settings.get("bits", settings.get("w_bit"))
    if bits in known:
        return int(bits)
    problems.append(f"quantization_config.bits={bits!r} is not one of {', '.join(map(str, known))}")
    return 0


def _groups_of(
    parts: Mapping[str, StoredTensor], settings: Mapping[str, Any], inputs: int, num_groups: int
) -> np.ndarray | None:
    """Returns the group of each input, or None if groups do not fit."""
    if GROUPS in parts:
        groups = parts[GROUPS].read().astype(np.int64)
        is_known = groups.size and groups.min() >= 0 and groups.max() < num_groups
        return groups if is_known else None
    size = settings.get("group_size", -1)
    size = inputs if size == -1 else size
    fits = type(size) is int and size > 0 and -(-inputs // size) == num_groups
    return np.arange(inputs) // size if fits else None


def _decode_layers(
    tensors: Mapping[str, StoredTensor], dtype: np.dtype, problems: list[str], layer: Layer
) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    suffixes = (INTEGERS, ZEROS, SCALES, GROUPS)
    for name, tensor in tensors.items():
        owner, _, last = name.rpartition(".")
        if f".{last}" not in suffixes or owner + INTEGERS not in tensors:
            found[name] = tensor
            continue
        if f".{last}" != INTEGERS:
            continue
        parts = {part: tensors[owner + part] for part in suffixes if owner + part in tensors}
        if missing := [owner + part for part in (ZEROS, SCALES) if part not in parts]:
            problems.append(f"{name} has no {' and no '.join(missing)}")
            continue
        if not check_dtypes(problems, WORDS, parts[INTEGERS], parts[ZEROS]):
            continue
        decoded = layer(f"{owner}.weight", parts, dtype, problems)
        found |= {} if decoded is None else {decoded.name: decoded}
    return found


def _layer(
    name: str,
    packed: PackedIntegers,
    zeros: PackedIntegers,
    scaled: tuple[StoredTensor, np.ndarray],
    *,
    offset: int,
    dtype: np.dtype,
    parts: tuple[StoredTensor, ...],
    kind: str,
) -> DecodedTensor:
    """Returns the weight of a layer, `[outputs, inputs]`, decoded from `[inputs, outputs]`."""
    scales, of_input = scaled
    inputs, outputs = len(of_input), scales.shape[1]
    scale_of = Blocks(lambda box: scales.read(box[::-1]).T, (1, 1), of_input)
    zero_of = Blocks(lambda box: zeros.read(box[::-1]).T, (1, 1), of_input)

    def decode_box(box: Box) -> np.ndarray:
        scale = scale_of.of(box)
        centered = packed.read(box[::-1]).T - (zero_of.of(box) + offset)
        return (centered * scale.astype(np.float32)).astype(scale.dtype)

    return DecodedTensor(
        *(name, dtype, (outputs, inputs), packed.tensor.path, packed.tensor.offset),
        strides=(1, outputs),
        decode=decode_box,
        storage=kind,
        parts=parts,
    )
