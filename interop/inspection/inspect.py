"""Lists the tensors of any folder, and what they become in a model, from file headers only."""

import dataclasses
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.checkpoint_origin import describe_adapter
from jaxllm.hub import local_path
from jaxllm.interop.families import variant_of
from jaxllm.interop.families.gguf.translate import is_gguf
from jaxllm.interop.formats.lazy_tensor import TensorSource
from jaxllm.interop.formats.pytorch.wrapped_names import plain_name, strip_wrappers
from jaxllm.interop.formats.quantized.codecs import describe_storage
from jaxllm.interop.formats.quantized.decoded_tensor import DecodedTensor
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor
from jaxllm.interop.formats.table import ModelFormat, model_format_of
from jaxllm.interop.loading.allowances import suggest_allowances
from jaxllm.interop.loading.checkpoint import open_checkpoint
from jaxllm.interop.loading.checkpoint_dir import (
    Checkpoint,
    check_is_folder,
    open_tensors,
    read_family,
)
from jaxllm.interop.loading.diagnostics import reason_to_ignore
from jaxllm.interop.loading.name_folding import fold
from jaxllm.interop.loading.plan import Analysis, Plan, analyze_checkpoint, make_plan
from jaxllm.interop.loading.streaming.array_reads import find_arrays

Tensors = Mapping[str, StoredTensor | TensorSource]

UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class TensorGroup:
    """Stored tensors whose names differ only in indices of layers, experts or shards."""

    name: str  # folded, as in `model.layers.{0..31}.mlp.up_proj.weight`
    count: int
    dtype: str  # or the storage of tensors that are decoded when read, such as "mxfp4"
    shape: tuple[int, ...]  # of each
    num_bytes: int  # of all together
    use: str  # the arrays that they fill, or why they fill none


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The contents of a folder of tensors; `ok` if `load_pretrained` can load it."""

    path: str
    family: str | None
    fields: Mapping[str, str]  # config fields: "read", "ignored", "not used" or "unknown"
    tensors: tuple[TensorGroup, ...]
    problems: tuple[str, ...]
    plan: Plan | None = None  # for loading onto one device
    notes: tuple[str, ...] = ()  # what is in the folder but is not loaded, or is loaded otherwise

    @property
    def ok(self) -> bool:
        """Whether every tensor and config field is accounted for."""
        return not self.problems

    @property
    def num_values(self) -> int:
        """The number of values in all tensors."""
        return sum(group.count * math.prod(group.shape) for group in self.tensors)

    @property
    def num_bytes(self) -> int:
        """The size of all tensors in bytes."""
        return sum(group.num_bytes for group in self.tensors)

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON values."""
        planned = self.plan and {
            "bytes_by_device": self.plan.bytes_by_device,
            "peak_host_bytes_above_arrays": self.plan.window_bytes,
            "dtype_changes": self.plan.dtype_changes,
        }
        return {
            "path": self.path,
            "family": self.family,
            "ok": self.ok,
            "problems": list(self.problems),
            "notes": list(self.notes),
            "num_tensors": sum(group.count for group in self.tensors),
            "num_values": self.num_values,
            "num_bytes": self.num_bytes,
            "tensors": [dataclasses.asdict(group) for group in self.tensors],
            "config": dict(self.fields),
            "plan": planned,
        }


def inspect(
    path: str | Path, *, rules: Any = None, strict: bool = True, allow: Sequence[str] = ()
) -> Inspection:
    """Lists the tensors of a folder, of a known family or not, from file headers only.

    Args:
        path: a folder of any known family, a native checkpoint, a run, any folder of tensors, or
            one file of tensors, such as a shard.
        rules: rules of your own, as described in docs/rules.md.
        strict: as for `load_pretrained`.
        allow: as for `load_pretrained`.

    Raises:
        CheckpointError: there is no folder, or the checkpoint cannot be opened with `rules`. All
            other problems are in `problems` of the result.
    """
    path = local_path(path)
    if rules is None and path.is_file() and not is_gguf(path):
        return _inspect_file(path)
    if rules is None and not is_gguf(path):
        check_is_folder(path)
    if (form := model_format_of(path)) is not None:
        return _inspect_model(path, form)
    try:
        checkpoint = open_checkpoint(path, rules, strict=strict, allow=allow)
    except CheckpointError as error:
        if rules is not None:
            raise
        return _inspect_unknown(path, error)
    account = analyze_checkpoint(checkpoint)
    problems = [*account.problems, *(account.unknown if strict else ())]
    problems += suggest_allowances(account.refused)
    plan = None
    if not problems:
        try:
            plan = make_plan(checkpoint)
        except CheckpointError as error:
            problems += error.problems
    tensors = _group(checkpoint.tensors, _uses(checkpoint, account))
    adapter = describe_adapter(checkpoint.path)
    return Inspection(
        str(path),
        checkpoint.family.name,
        account.fields,
        tensors,
        tuple(problems),
        plan,
        (
            *checkpoint.allowed,
            *filter(None, [describe_storage(checkpoint.tensors)]),
            *([] if adapter is None else [f"{adapter} is not loaded"]),
        ),
    )


def _inspect_model(path: Path, form: ModelFormat) -> Inspection:
    try:
        step = form.find_step(path, None)
        _, arrays = form.open(step)
    except CheckpointError as error:
        return Inspection(str(path), form.name, {}, (), error.problems)
    return Inspection(str(step), form.name, {}, _group(arrays, dict.fromkeys(arrays, "itself")), ())


def _inspect_file(path: Path) -> Inspection:
    """Lists the tensors of one file; if a config is beside it, also what they become."""
    try:
        tensors = open_tensors(path)
    except CheckpointError as error:
        return Inspection(str(path), None, {}, (), error.problems)
    family, uses = None, dict.fromkeys(tensors, "not known without a config beside the file")
    try:
        found, config = read_family(path.parent)
    except CheckpointError:
        config = None
    if config is not None:
        plain = strip_wrappers(tensors)
        checkpoint = Checkpoint(path.parent, variant_of(found, plain), config, plain)
        family = checkpoint.family.name
        of_plain = _uses(checkpoint, analyze_checkpoint(checkpoint))
        uses = {name: of_plain[plain_name(name)] for name in tensors}
    return Inspection(str(path), family, {}, _group(tensors, uses), ())


def _inspect_unknown(path: Path, error: CheckpointError) -> Inspection:
    """Lists the tensors of a folder that is not a known checkpoint, and why it is not one."""
    problems = list(error.problems)
    try:
        tensors = open_tensors(path)
    except CheckpointError as other:
        problems += [problem for problem in other.problems if problem not in problems]
        tensors = {}
    groups = _group(tensors, dict.fromkeys(tensors, UNKNOWN))
    return Inspection(str(path), None, {}, groups, tuple(problems))


def _group(tensors: Tensors, uses: Mapping[str, str]) -> tuple[TensorGroup, ...]:
    kinds: dict[str, Hashable] = {
        name: (_storage_of(tensor), tensor.shape, uses[name]) for name, tensor in tensors.items()
    }
    groups = []
    for name, members in fold(kinds):
        tensor = tensors[members[0]]
        count = len(members)
        groups.append(
            TensorGroup(
                name,
                count,
                _storage_of(tensor),
                tensor.shape,
                sum(_stored_bytes(tensors[member]) for member in members),
                uses[members[0]],
            )
        )
    return tuple(groups)


def _storage_of(tensor: StoredTensor | TensorSource) -> str:
    """Returns the name of a tensor's dtype, or of what encodes it."""
    return tensor.storage if isinstance(tensor, DecodedTensor) else tensor.dtype.name


def _stored_bytes(tensor: StoredTensor | TensorSource) -> int:
    if isinstance(tensor, DecodedTensor):
        return sum(part.nbytes for part in tensor.parts)
    return tensor.nbytes


def _uses(checkpoint: Checkpoint, account: Analysis) -> dict[str, str]:
    """Maps each stored tensor to the arrays it fills, or to the reason that it fills none."""
    if account.config is None:
        return dict.fromkeys(checkpoint.tensors, "unknown without a config")
    filled: dict[str, list[str]] = {}
    for rule, sizes in account.rules:
        for name, index in rule.stored.names(sizes):
            whole = name.partition("#")[0]
            for array in find_arrays(rule.model, index, sizes):
                # The same text for all layers, so that their tensors fold into one group.
                filled.setdefault(whole, []).append(re.sub(r"(?<=layers\.)[\d:]+", "*", array))
    table = account.table
    computed = {derived.name for derived in table.derived}

    def use(name: str) -> str:
        if name in filled:
            return ", ".join(dict.fromkeys(filled[name]))
        if name in table.tied:
            return f"a copy of {table.tied[name]}"
        if name in computed:
            return "computed from the config"
        why = reason_to_ignore(table, name)
        return UNKNOWN if why is None else f"ignored: {why}"

    return {name: use(name) for name in checkpoint.tensors}
