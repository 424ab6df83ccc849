"""Before any tensor is read: which stored tensors make up which array, and all that is wrong."""

import dataclasses
import fnmatch
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

import numpy as np

from jaxllm.config import DecoderConfig, Dtype
from jaxllm.models import build_abstract
from jaxllm.params import stacks

from .directory import Checkpoint
from .families import Fields, Layout, Table, nearest
from .rules import BoundRule, Index, Range, Side, Sizes, Transfer
from .tensors import CheckpointError, StoredTensor


@dataclasses.dataclass(frozen=True)
class Assembly:
    """How one of the model's arrays is put together."""

    transfer: Transfer
    index: Index
    dtype: np.dtype

    def shape(self) -> tuple[int, ...]:
        """The shape of the whole array."""
        return self.transfer.target.shape(self.transfer.sizes)

    def read(self, tensors: Mapping[str, StoredTensor], box: Sequence[Range]) -> np.ndarray:
        """A box of the array, from just the bytes that it needs."""
        out = np.empty([high - low for low, high in box], self.dtype)
        for piece in self.transfer.pieces(self.index, box):
            self.transfer.copy(piece, tensors[piece.name].open(), out)
        return out


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checkpoint that fits its config: the model, and how to assemble each of its arrays."""

    config: DecoderConfig
    layout: Layout
    table: Table
    rules: tuple[BoundRule, ...]
    tensors: Mapping[str, StoredTensor]  # as the rules name them: the parts of fused ones apart
    assemblies: Mapping[str, Assembly]


def make_plan(checkpoint: Checkpoint) -> Plan:
    """Accounts for every field of the config and every tensor, from the headers alone.

    Raises CheckpointError with everything missing, unexpected, mis-shaped or not understood.
    """
    family, tensors = checkpoint.family, checkpoint.tensors
    fields = Fields(checkpoint.config)
    problems: list[str] = []
    try:
        values, layout = family.read_config(fields, tensors)
        problems = [f"{family.config_file}: {problem}" for problem in fields.finish()]
        dtype = _main_dtype(tensors)
        config = DecoderConfig(**values, param_dtype=dtype, dtype=dtype)
        table = family.table(config, layout)
        rules = table.bound(stacks(build_abstract(config)))
    except ValueError as error:
        if fields.is_complete:  # else it may follow from what is missing
            problems.append(f"{family.config_file}: {error}")
        raise CheckpointError(problems, checkpoint.path) from None
    tensors = split_fused(rules, tensors)
    problems += check_tensors(table, rules, tensors)
    if problems:
        raise CheckpointError(problems, checkpoint.path)
    assemblies = dict(_assemblies(rules, tensors))
    if mixed := _mixed_dtypes(assemblies, tensors):
        raise CheckpointError(mixed, checkpoint.path)
    return Plan(config, layout, table, rules, tensors, assemblies)


def split_fused(
    rules: Sequence[BoundRule], tensors: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """The tensors, with each fused one replaced by its parts, as far as it has rows for them."""
    split = dict(tensors)
    for fused, parts in fused_parts(rules).items():
        whole = tensors.get(fused)
        if whole is None or not whole.shape:
            continue
        rows = [shape[0] for shape in parts.values()]
        if sum(rows) != whole.shape[0]:
            continue
        del split[fused]
        for part, start, count in zip(parts, np.cumsum([0, *rows]), rows, strict=False):
            split[part] = whole.rows(part, int(start), count)
    return split


def fused_parts(rules: Sequence[BoundRule]) -> dict[str, dict[str, tuple[int, ...]]]:
    """The name of each fused tensor, and the names and shapes of its parts in their order."""
    fused: dict[str, dict[str, tuple[int, ...]]] = {}
    for bound in rules:
        for name, shape in bound.stored():
            whole, is_part, _ = name.partition("#")
            if is_part:
                fused.setdefault(whole, {})[name] = shape
    return fused


def check_tensors(
    table: Table, rules: Sequence[BoundRule], tensors: Mapping[str, StoredTensor]
) -> list[str]:
    """What is missing, unexpected or mis-shaped, with the name or the axis that was meant."""
    expected = {name: bound for bound in rules for name, _ in bound.stored()}
    optional = {*table.tied, *(derived.name for derived in table.derived)}
    missing = [name for name in expected if name not in tensors]
    unexpected = [
        name
        for name in tensors
        if name not in expected
        and name not in optional
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in table.ignored)
    ]
    shapes = {
        name: _shape_problem(bound.rule.stored, tensors[name].shape, bound.sizes)
        for name, bound in expected.items()
        if name in tensors
    }
    dtypes = {
        name: tensors[name].dtype.name
        for name in expected
        if name in tensors and tensors[name].dtype.name not in get_args(Dtype)
    }
    readable = ", ".join(get_args(Dtype))
    return [
        *(f"{name} is {dtype}; readable are {readable}" for name, dtype in dtypes.items()),
        *(f"{name} is missing{nearest(name, unexpected)}" for name in missing),
        *(f"{name} is unexpected{nearest(name, missing)}" for name in unexpected),
        *(f"{name}: {problem}" for name, problem in shapes.items() if problem),
    ]


def _shape_problem(side: Side, shape: tuple[int, ...], sizes: Sizes) -> str | None:
    expected = side.shape(sizes)
    if shape == expected:
        return None
    if len(shape) != len(expected):
        return f"shape is {expected} from the config, {shape} in the file"
    return "; ".join(
        f"{_spell_dim(dim, sizes)} from the config, {found} in the file"
        for dim, wanted, found in zip(side.dims, expected, shape, strict=True)
        if wanted != found
    )


def _spell_dim(dim: Sequence[str], sizes: Sizes) -> str:
    if len(dim) == 1:
        return f"{dim[0]} is {sizes[dim[0]]}"
    factors = " x ".join(str(sizes[axis]) for axis in dim)
    return f"({' '.join(dim)}) is {factors} = {math.prod(sizes[axis] for axis in dim)}"


def _main_dtype(tensors: Mapping[str, StoredTensor]) -> Dtype:
    """The dtype of most bytes: what the model was saved in."""
    sizes = Counter[str]()
    for tensor in tensors.values():
        sizes[tensor.dtype.name] += tensor.nbytes
    known: tuple[Dtype, ...] = get_args(Dtype)
    return max(known, key=sizes.__getitem__)


def _assemblies(
    rules: Sequence[BoundRule], tensors: Mapping[str, StoredTensor]
) -> Iterator[tuple[str, Assembly]]:
    for rule, sizes in rules:
        transfer = rule.importing(sizes)
        first = rule.stored.spell(dict.fromkeys(rule.stored.name_axes, 0), sizes)
        for name, index in transfer.target.names(sizes):
            yield name, Assembly(transfer, index, tensors[first].dtype)


def _mixed_dtypes(
    assemblies: Mapping[str, Assembly], tensors: Mapping[str, StoredTensor]
) -> list[str]:
    """Arrays whose parts are stored in different dtypes, which one array cannot keep."""
    problems = []
    for name, assembly in assemblies.items():
        box = [(0, size) for size in assembly.shape()]
        sources = {piece.name for piece in assembly.transfer.pieces(assembly.index, box)}
        dtypes = sorted({tensors[source].dtype.name for source in sources})
        if len(dtypes) > 1:
            problems.append(f"{name} is stored in parts of {' and '.join(dtypes)}")
    return problems
