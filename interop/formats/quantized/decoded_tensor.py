"""Tensors that are decoded while they are read, from tensors of small numbers and their scales."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.boxes import Box, box_shape, boxes, slices

Decode = Callable[[Box], np.ndarray]

PIECE = 2**20  # elements decoded at once: what decoding takes beside its result stays small


@dataclass(frozen=True, eq=False)
class DecodedTensor(StoredTensor):
    """A tensor that other stored tensors, its `parts`, encode.

    `path` and `offset` are those of the small numbers, and `strides` say in which order they lie.

    Attributes:
        decode: decodes a box, in any floating-point dtype.
        storage: what the tensor is stored as, for people.
        parts: the tensors that encode it.
    """

    decode: Decode | None = None
    storage: str = ""
    parts: tuple[StoredTensor, ...] = ()

    def read(self, box: Box | None = None) -> np.ndarray:
        """Decodes a box, by default the whole tensor.

        Raises:
            CheckpointError: a file ends before the box does.
        """
        assert self.decode is not None
        box = [(0, size) for size in self.shape] if box is None else list(box)
        out = np.empty(box_shape(box), self.dtype)
        strides = self.element_strides
        order = sorted(range(len(box)), key=lambda dim: -strides[dim])
        for piece in boxes([out.shape[dim] for dim in order], PIECE):
            within = [piece[order.index(dim)] for dim in range(len(box))]
            pairs = zip(within, box, strict=True)
            place = [(low + start, high + start) for (low, high), (start, _) in pairs]
            with np.errstate(over="ignore"):  # as PyTorch casts
                out[slices(within)] = self.decode(place)
        return out

    def own_box(self, box: Box) -> np.ndarray:
        """Returns a box, see `read`."""
        return self.read(box)

    def rows(self, name: str, start: int, count: int) -> "DecodedTensor":
        """Returns `count` rows from `start` on, as a tensor with a name of its own."""
        decode = self.decode
        assert decode is not None

        def shifted(box: Box) -> np.ndarray:
            (low, high), *rest = box
            return decode([(low + start, high + start), *rest])

        changes: dict[str, Any] = {"name": name, "shape": (count, *self.shape[1:])}
        return replace(self, **changes, decode=shifted)


def in_float32(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Returns tensors of which those to be decoded are so to float32, rounded to no other before.

    Others are as they were.
    """
    changes: dict[str, Any] = {"dtype": np.dtype(np.float32)}
    return {
        name: replace(tensor, **changes) if isinstance(tensor, DecodedTensor) else tensor
        for name, tensor in tensors.items()
    }


def check_dtypes(problems: list[str], dtypes: Sequence[str], *tensors: StoredTensor) -> bool:
    """Whether tensors have one of some dtypes; appends a message on each other one."""
    wrong = [tensor for tensor in tensors if tensor.dtype.name not in dtypes]
    problems += [
        f"{tensor.name} is {tensor.dtype.name}, expected {' or '.join(dtypes)}" for tensor in wrong
    ]
    return not wrong


def pair_of_sizes(given: Any, problems: list[str], name: str) -> tuple[int, int] | None:
    """Returns the rows and columns of a field, or None; a problem if it says anything else."""
    match given:
        case None:
            return None
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
    problems.append(f"quantization_config.{name}={given!r} is no pair of sizes")
    return None


def check_shapes(problems: list[str], *pairs: tuple[StoredTensor, Sequence[int]]) -> bool:
    """Whether tensors have the shapes that they must have; appends a message on each other one."""
    wrong = [(tensor, shape) for tensor, shape in pairs if tensor.shape != tuple(shape)]
    problems += [
        f"{tensor.name} has shape {list(tensor.shape)}, expected {list(shape)}"
        for tensor, shape in wrong
    ]
    return not wrong
