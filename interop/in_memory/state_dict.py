"""State dicts in memory as named tensors that are read box by box, like those of files.

The values may be tensors of PyTorch on any device, with any strides, arrays of NumPy, and tensors
that are sharded over the processes of torch.distributed.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.errors import listed
from jaxllm.interop.formats.pytorch.storage_views import WRITABLE_DTYPES
from jaxllm.interop.formats.pytorch.torch_zip import unwrap
from jaxllm.interop.formats.pytorch.wrapped_names import strip_wrappers
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor
from jaxllm.interop.loading.name_folding import fold
from jaxllm.interop.rules.boxes import Box, slices

from .process_shards import gather_shards, is_sharded
from .torch_tensors import is_tensor, numpy_dtype, to_numpy, why_unreadable

STATE_DICT = "state dict"  # what messages call one without a better name


@dataclasses.dataclass(frozen=True, eq=False)
class HeldTensor(StoredTensor):
    """A tensor in the memory of this process.

    `path` is what messages call the state dict, `offset` counts its tensors, and `strides` are
    those in memory.

    Attributes:
        data: the tensor of PyTorch or the array of NumPy.
    """

    data: Any = None

    def rows(self, name: str, start: int, count: int) -> StoredTensor:
        """Returns `count` rows from `start` on, as a tensor with a name of its own."""
        shape, data = (count, *self.shape[1:]), self.data[start : start + count]
        return HeldTensor(name, self.dtype, shape, self.path, self.offset, self.strides, data=data)

    def read(self, box: Box | None = None) -> np.ndarray:
        """Returns a box, by default the whole tensor: without a copy if it is on the host."""
        part = self.data if box is None else self.data[(*slices(box), ...)]
        return part if isinstance(part, np.ndarray) else to_numpy(part)

    def own_box(self, box: Box) -> np.ndarray:
        """Returns a box, see `read`."""
        return self.read(box)


def state_dict_of(source: Any) -> tuple[Mapping[str, Any], str] | None:
    """Returns the state dict that a source is, or that of a module, and what messages call it.

    None if it is neither, such as a path.
    """
    if isinstance(source, Mapping):
        return source, STATE_DICT
    if callable(getattr(source, "state_dict", None)):
        return source.state_dict(), type(source).__name__
    return None


def read_state_dict(state: Mapping[str, Any], place: str = STATE_DICT) -> dict[str, StoredTensor]:
    """Returns the tensors of a state dict by their plain names; none is copied.

    Prefixes of wrappers, such as `module.` and `_orig_mod.`, are removed, and of a trainer's
    dictionary its state dict is taken. Entries that are no tensors are left out. If tensors are
    sharded, every process of torch.distributed must call this, and must read the same boxes in the
    same order.

    Args:
        state: the state dict, or a trainer's dictionary that holds one.
        place: what messages call it.

    Raises:
        CheckpointError: tensors have no numbers or a dtype that is not supported, two names are one
            without prefixes, or processes hold different tensors. Lists every problem.
    """
    path = Path(place)
    entries = unwrap(path, state, _is_array)
    if not any(map(_is_array, entries.values())):
        found = ", ".join(map(str, entries)) or "none"
        kinds = ", ".join(dict.fromkeys(type(value).__name__ for value in entries.values()))
        raise CheckpointError(
            "it has no tensors of PyTorch and no arrays of NumPy; its entries are of the types "
            f"{kinds or 'none'}: {found:.300}",
            path,
        )
    return strip_wrappers(hold_tensors(entries, path))


def hold_tensors(entries: Mapping[Any, Any], path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors among the entries by the names that they have.

    Args:
        entries: tensors, arrays and anything else, which is left out, by name.
        path: what messages call them.

    Raises:
        CheckpointError: see `read_state_dict`.
    """
    held = {name: value for name, value in entries.items() if _is_array(value)}
    reasons = {str(n): why for n, value in held.items() if (why := _why_refused(n, value))}
    if reasons:
        groups = fold(reasons)
        raise CheckpointError(
            listed(groups, lambda group: f"{group.name} {reasons[group.members[0]]}"), path
        )
    sharded = gather_shards({n: value for n, value in held.items() if is_sharded(value)}, path)
    whole = describe({name: value for name, value in held.items() if name not in sharded}, path)
    every: dict[str, Any] = {**whole, **sharded}
    return {name: every[name] for name in held}


def without_copies(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a state dict with each tensor under its first name only, as transformers saves it."""
    first: dict[object, str] = {}
    for name, value in state.items():
        first.setdefault(_memory_of(value) or name, name)
    return {name: state[name] for name in first.values()}


def _memory_of(value: Any) -> object:
    """Returns the place of a tensor's numbers in memory, or None if it cannot be told."""
    local = value.to_local() if hasattr(value, "to_local") else value
    if not is_tensor(local) or is_sharded(local) or why_unreadable(local) or not local.numel():
        return None
    return local.device, local.data_ptr(), local.shape, local.stride()


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray) or is_tensor(value)


def _why_refused(name: object, value: Any) -> str | None:
    """Returns why an entry cannot be read, or None."""
    if not isinstance(name, str):
        return f"is a {type(name).__name__}, not the name of a tensor"
    if isinstance(value, np.ndarray):
        is_known = value.dtype in WRITABLE_DTYPES
        return None if is_known else f"is of dtype {value.dtype}, which PyTorch does not have"
    return None if is_sharded(value) else why_unreadable(value)


def describe(values: Mapping[str, Any], path: Path) -> dict[str, StoredTensor]:
    """Returns tensors and arrays that this process has whole; they may lie on the meta device."""
    found: dict[str, StoredTensor] = {}
    for number, (name, value) in enumerate(values.items()):
        is_numpy = isinstance(value, np.ndarray)
        dtype = value.dtype if is_numpy else numpy_dtype(value)
        data = value if is_numpy else value.detach()
        strides = [s // dtype.itemsize for s in value.strides] if is_numpy else value.stride()
        known = tuple(strides) if all(stride >= 0 for stride in strides) else None
        found[name] = HeldTensor(name, dtype, tuple(value.shape), path, number, known, data)
    return found
