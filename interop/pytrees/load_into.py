"""Loads checkpoints into any JAX pytree: each device shard is read from the bytes that hold it."""

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import jax
import numpy as np

from jaxllm.config import Dtype
from jaxllm.config.numerics import check_dtype_name
from jaxllm.errors import MissingCheckpointError
from jaxllm.hub import local_path
from jaxllm.interop.formats.byte_sizes import parse_size
from jaxllm.interop.formats.pytorch.wrapped_names import strip_wrappers
from jaxllm.interop.formats.source_files import check_unchanged, identify
from jaxllm.interop.formats.stored_tensor import DTYPE_NAMES, CheckpointError, StoredTensor
from jaxllm.interop.in_memory.state_dict import read_state_dict, state_dict_of
from jaxllm.interop.loading.checkpoint_dir import open_tensors
from jaxllm.interop.loading.diagnostics import Findings, check_count, check_tensors
from jaxllm.interop.loading.plan import MAX_RAM, split_fused
from jaxllm.interop.loading.streaming.array_reads import ArrayReads, plan_arrays, read_arrays
from jaxllm.interop.loading.tied_tensors import check_copies
from jaxllm.interop.rules.rule import Rule

from .fitting import Fit, fit_rules
from .leaves import NamedLeaves, is_abstract
from .placement import place_leaves
from .tree_rules import TreeRules, read_tree_rules

Tree = TypeVar("Tree")
Tensors = Mapping[str, StoredTensor]
TREE: Literal["tree"] = "tree"

logger = logging.getLogger(__name__)


def load_into(
    tree: Tree,
    source: Any,
    rules: Any,
    *,
    shardings: Any = None,
    dtype: Dtype | Literal["tree"] | None = None,
    strict: bool = True,
    max_ram: int | str = MAX_RAM,
) -> Tree:
    """Fills the leaves of any JAX pytree with the tensors of a checkpoint.

    The right side of a rule names leaves by the keys, fields and positions on the way to them, such
    as `layers.0.attn.wq.weight` of an Equinox module or `params.Dense_0.kernel` of Linen variables.
    Every array must be filled and every tensor used, or the rules must say why not.

    Args:
        tree: the tree. Its leaves may be arrays or `jax.ShapeDtypeStruct`s; only their shapes
            count. Leaves that are no arrays of numbers are kept.
        source: a folder or a file of tensors, in any format that `jaxllm inspect` reads, an address
            `hf://ORG/NAME`, or a state dict in memory, or the PyTorch module that has it.
        rules: a list of `Rule`, or a Python file, which is run, or an object with the attribute
            `rules` and, if needed, `sizes` of axes, `tied`, `ignored` and `derived` tensors, and
            `kept`: patterns of leaves that no tensor fills, with the reason (docs/rules.md).
        shardings: where the leaves go; each device loads only its own shards. One sharding for
            all, a tree like `tree` with a sharding in place of each array, or a function of the
            leaf's name and its `jax.ShapeDtypeStruct`. By default each leaf's own sharding or,
            if it has none, the first device.
        dtype: of floats: "tree" for that of each leaf in `tree`, or one for all; by default as
            stored, bit for bit. Finite numbers beyond its range become its largest; a warning says
            how many in each tensor.
        strict: whether to reject tensors that no rule names. If False, a warning lists them.
        max_ram: host memory to use in addition to the arrays: bytes, or a text like "256MiB".

    Returns:
        A tree of the same structure whose arrays are on devices.

    Raises:
        CheckpointError: tensors or leaves are missing, unexpected or of another shape, or copies
            differ. Lists every problem.
        UserError: an argument is not valid.

    Example:
        model = load_into(model, "Llama-3.2-1B", rules, shardings=NamedSharding(mesh, P("data")))
    """
    if dtype is not None:
        check_dtype_name(dtype, [TREE, *get_args(Dtype)])
    leaves, own, budget = NamedLeaves.of(tree), read_tree_rules(rules), parse_size(max_ram)
    place, tensors, files = _open(source)
    before = identify(files)
    options = {"shardings": shardings, "dtype": dtype, "strict": strict, "max_ram": budget}
    plan = plan_tree(leaves, own, tensors, place, **options)
    check_copies(plan, place)
    arrays = read_arrays(plan)
    check_unchanged(before)
    return leaves.replaced(arrays)


def _open(source: Any) -> tuple[object, Tensors, set[Path]]:
    """Returns what messages call a checkpoint, its tensors, and the files that they are in."""
    if (held := state_dict_of(source)) is not None:
        return held[1], read_state_dict(*held), set()
    path = local_path(source)
    tensors = read_tensors(path)
    return path, tensors, {tensor.path for tensor in tensors.values()}


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a folder or a file by their plain names, from the headers alone.

    Raises:
        CheckpointError: there are no tensors, or a file is damaged.
    """
    if not path.exists():
        raise MissingCheckpointError(f"{path} does not exist")
    return strip_wrappers(open_tensors(path))


def plan_tree(
    leaves: NamedLeaves,
    rules: TreeRules,
    tensors: Tensors,
    place: object,
    *,
    shardings: Any,
    dtype: str | None,
    strict: bool,
    max_ram: int,
) -> ArrayReads:
    """Plans the loading of a tree's leaves, and checks every leaf and every tensor.

    Args:
        leaves: the leaves of the tree.
        rules: the rules.
        tensors: the stored tensors.
        place: what messages call the checkpoint.
        shardings: as for `load_into`.
        dtype: as for `load_into`.
        strict: as for `load_into`.
        max_ram: as for `load_into`, in bytes.

    Raises:
        CheckpointError: something does not fit. Lists every problem.
    """
    fit = fit_rules(leaves, rules, {name: tensor.shape for name, tensor in tensors.items()})
    stored, found = _check_tensors(fit, tensors, rules.ruled_copies)
    problems = [*fit.problems, *_without_values(leaves, rules), *found.problems]
    if strict:
        problems += found.unexpected
    if problems:
        raise CheckpointError(problems, place)
    if found.unexpected:
        logger.warning("%s: ignored (strict=False):\n  %s", place, "\n  ".join(found.unexpected))
    named = {name for rule in fit.rules for name, _ in rule.rule.model.names(rule.sizes)}
    arrays = plan_arrays(
        fit.rules,
        stored,
        place_leaves(leaves, named, shardings),
        _dtypes(leaves, dtype),
    )
    problems = [
        f"{name} is {leaves.arrays[name].dtype} in the tree, but {array.stored} in the checkpoint, "
        "and only floats are converted"
        for name, array in arrays.items()
        if dtype == TREE and array.dtype != np.dtype(leaves.arrays[name].dtype)
    ]
    if problems:
        raise CheckpointError(problems, place)
    return ArrayReads(fit.table, fit.rules, stored, arrays, max_ram)


def _without_values(leaves: NamedLeaves, rules: TreeRules) -> list[str]:
    return [
        f"{name} is kept, but it is only a shape and a dtype: put an array there"
        for name, leaf in leaves.arrays.items()
        if rules.keeps(name) and is_abstract(leaf)
    ]


def _check_tensors(
    fit: Fit, tensors: Tensors, copies: Collection[str]
) -> tuple[dict[str, StoredTensor], Findings]:
    """Returns the tensors as the rules name them, and which of them do not fit."""
    try:
        check_count(fit.table, tensors, given_by="the tree")
    except ValueError as error:
        return {}, Findings([str(error)], [])
    whole = fit.table.with_originals(tensors)
    for copy in copies:
        if copy not in whole and (original := whole.get(fit.table.tied[copy])) is not None:
            whole[copy] = dataclasses.replace(original, name=copy)
    stored = split_fused(fit.rules, whole)
    found = check_tensors(
        fit.table,
        fit.rules,
        # What rules that could not be bound name is among the problems already.
        {name: tensor for name, tensor in stored.items() if not _is_named(name, fit.unbound)},
        given_by="the tree",
        supported=_dtypes_of_jax(),
    )
    return stored, found


def _is_named(tensor: str, rules: Sequence[Rule]) -> bool:
    """Whether one of the rules names a tensor, or a part of it."""
    return any(
        rule.stored.find(tensor) is not None or rule.stored.name.partition("#")[0] == tensor
        for rule in rules
    )


def _dtypes_of_jax() -> list[str]:
    """Returns the names of the dtypes that JAX holds in its present configuration."""
    return [dtype.name for dtype in DTYPE_NAMES if jax.dtypes.canonicalize_dtype(dtype) == dtype]


def _dtypes(leaves: NamedLeaves, dtype: str | None) -> Callable[[str, np.dtype], np.dtype]:
    """Returns a function from the name of a leaf and the stored dtype to the dtype to load."""

    def dtype_of(name: str, stored: np.dtype) -> np.dtype:
        wanted = np.dtype(leaves.arrays[name].dtype if dtype == TREE else dtype or stored)
        return wanted if _is_float(stored) and _is_float(wanted) else stored

    return dtype_of


def _is_float(dtype: np.dtype) -> bool:
    return bool(jax.numpy.issubdtype(dtype, jax.numpy.floating))
