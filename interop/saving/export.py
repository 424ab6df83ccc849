"""Export planning: chooses the family, lays out the files and maps arrays to stored tensors."""

import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxllm.checkpoint_origin import Origin
from jaxllm.errors import CheckpointArgumentError, CheckpointError, did_you_mean
from jaxllm.interop.families import FAMILIES, Family, Layout, RuleTable
from jaxllm.interop.formats.file_writer import PlannedFile
from jaxllm.interop.formats.lazy_tensor import (
    TensorSource,
    concatenate_rows,
    from_array,
    transfer_tensor,
)
from jaxllm.interop.formats.table import (
    FORMATS,
    TensorFormat,
    tensor_formats,
    writable_formats,
)
from jaxllm.interop.loading.diagnostics import check_arrays
from jaxllm.interop.loading.model_arrays import ModelArrays
from jaxllm.interop.loading.name_folding import in_short
from jaxllm.interop.loading.user_family import FORMAT as USERS_FORMAT
from jaxllm.interop.loading.user_family import known_family, resolve_family
from jaxllm.interop.rules.binding import fused_parts
from jaxllm.interop.rules.rule import Stacks
from jaxllm.interop.rules.rules_file import RulesError

from .carried import carried_by, find_carried
from .kept_fields import keep_fields
from .special_tokens import add_special_tokens, generation_config

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Export:
    """A checkpoint to be written: first the tensor files in any order, then the small files.

    Attributes:
        family: the family whose tensor names and config file are used.
        tensors: the tensors by name; none is read yet.
        files: the layouts of the tensor files.
        texts: the small files in the order to write them, such as the config and the index file.
    """

    family: Family
    tensors: Mapping[str, TensorSource]
    files: tuple[PlannedFile, ...]
    texts: Mapping[str, bytes]


def plan_export(
    model: ModelArrays,
    families: Sequence[Family],
    model_parallel: int | None,
    max_shard: int,
    chosen: str | None = None,
) -> Export:
    """Plans a checkpoint of the first family that can express the model.

    Args:
        model: the model and its arrays.
        families: the families to try, in this order.
        model_parallel: the number of model-parallel shards; by default as many as were read.
        max_shard: the most bytes of tensors in a shard, for formats whose shards have an index.
        chosen: the format to write; by default the family's own.

    Raises:
        CheckpointError: no family can express the model; lists the reason of each. Or the format
            cannot be written.
    """
    carried, reason = _find_carried(model)
    if reason:  # the text of a multimodal model is then written as a model of its own
        families = [family for family in families if not family.is_part]
    family, config, table = choose_family(model, families, model_parallel)
    if carried and model.origin is not None and model.origin.family != family.name:
        reason = f"{family.name} has no place for {in_short(list(carried))}"
        carried = {}
    if reason:
        logger.warning("%s: written without them, as %s", reason, family.name)
    tensors = dict(export_tensors(model, table)) | carried
    config = keep_original(model.origin, family, config, tensors)
    row = FORMATS[chosen or family.format]
    if not isinstance(row, TensorFormat) or row.lay_out is None:
        raise CheckpointArgumentError(
            f"format={row.name!r} has no tensor files that can be written"
        )
    files, index = row.lay_out(tensors, table.file, max_shard)
    config = add_special_tokens(config, family, model.origin)
    text = (json.dumps(config, indent=2) + "\n").encode()
    texts = {family.config_file: text} if family.config_file else {}
    texts |= generation_config(config, family, model.origin)
    return Export(family, tensors, tuple(files), {**texts, **index})


def _find_carried(model: ModelArrays) -> tuple[dict[str, TensorSource], str]:
    """Returns the tensors outside of the model to write too, and why they cannot be written."""
    if model.origin is None or not carried_by(model.origin):
        return {}, ""
    try:
        found = find_carried(model.origin)
    except CheckpointError as error:
        return {}, str(error)
    dtype = model.cast_to
    return {
        name: tensor
        if dtype is None or tensor.dtype.kind in "biu"
        else tensor.astype(dtype, model.zeroed, name)
        for name, tensor in found.items()
    }, ""


def possible_families(
    origin: Origin | None, chosen: str | None, model_parallel: int | None, rules: Any = None
) -> list[Family]:
    """Returns the families to try for the format to write, the model's own first.

    Args:
        origin: the checkpoint that the model came from, if any.
        chosen: the format; by default that of the origin, or "hf" without one.
        model_parallel: the number of model-parallel shards, for formats that have such.
        rules: rules for a model of your own, for format "rules". A model that was loaded with
            rules in this process does not need them again.

    Returns:
        The families; none for a format that needs no family.

    Raises:
        CheckpointError: the format does not exist or cannot have so many model-parallel shards, or
            rules are missing.
    """
    users = _users_family(origin, chosen, rules) if chosen in (None, USERS_FORMAT) else None
    if chosen is not None and chosen not in (known := writable_formats()):
        raise CheckpointArgumentError(
            f"format={chosen!r} is not one of {', '.join(known)}{did_you_mean(str(chosen), known)}"
        )
    own = None if origin is None else origin.family
    if users is not None:
        chosen = users.format
    elif chosen is None:
        formats = (family.format for family in FAMILIES if family.name == own)
        chosen = next(formats, next(iter(FORMATS)))
    _check_shards(chosen, model_parallel)
    if users is not None:
        return [users]
    families = [family for family in FAMILIES if family.format == _family_format(chosen)]
    return sorted(families, key=lambda family: family.name != own)


def _family_format(chosen: str) -> str | None:
    """Returns the `Family.format` of the families that name a format's tensors, or None."""
    row = FORMATS[chosen]
    return row.family_format if isinstance(row, TensorFormat) else None


def _check_shards(chosen: str, model_parallel: int | None) -> None:
    """Raises CheckpointError if the format cannot have `model_parallel` shards."""
    sharded = [row.name for row in tensor_formats() if row.first_shard]
    if model_parallel is not None and chosen not in sharded:
        fitting = " or ".join(map(repr, sharded))
        raise CheckpointArgumentError(
            f"model_parallel={model_parallel} is for format {fitting}, not {chosen!r}"
        )
    if model_parallel is not None and model_parallel < 1:
        raise CheckpointArgumentError(f"model_parallel={model_parallel} is less than 1")


def _users_family(origin: Origin | None, chosen: str | None, rules: Any) -> Family | None:
    """Returns the family of the given rules, or of those that the model was loaded with, or None.

    Raises:
        CheckpointError: format "rules" is chosen but no rules are known.
    """
    if rules is not None:
        return resolve_family(rules)
    own = "" if origin is None else origin.family
    if own and own not in (family.name for family in FAMILIES):
        return known_family(own)
    if chosen == USERS_FORMAT:
        raise CheckpointArgumentError(
            f"format={chosen!r} needs the rules of your own model: give rules (--rules)"
        )
    return None


def write_texts(folder: Path, texts: Mapping[str, bytes]) -> None:
    """Writes the small files in order, each atomically."""
    for name, text in texts.items():
        partial = folder / f"{name}.partial"
        with partial.open("wb") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, folder / name)


def choose_family(
    model: ModelArrays, families: Sequence[Family], model_parallel: int | None
) -> tuple[Family, dict, RuleTable]:
    """Returns the first family that can express the model, its config's fields and its table.

    Raises:
        CheckpointError: no family can; lists the reason of each.
    """
    origin, problems = model.origin, []
    for family in families:
        base, layout = {}, Layout()
        if origin is not None and origin.family == family.name:
            base, layout = json.loads(origin.config), Layout(**json.loads(origin.layout)).written
        if model_parallel is not None:
            layout = dataclasses.replace(layout, model_parallel=model_parallel)
        try:
            family.check_class(model.config)
            config, table = (
                family.write_config(model.config, base),
                family.table(model.config, layout),
            )
            check_complete(model, table)
            return family, config, table
        except RulesError as error:
            problems.append(str(error))
        except ValueError as error:
            problems.append(f"{family.name}: {error}")
    raise CheckpointError(problems, f"cannot write this model as {families[0].format!r}")


def keep_original(
    origin: Origin | None, family: Family, config: dict[str, Any], tensors: Any
) -> dict[str, Any]:
    """Returns a config to write as the origin has it, but for what the model changed."""
    if origin is None or origin.family != family.name or family.format == USERS_FORMAT:
        return config
    base, layout = json.loads(origin.config), json.loads(origin.layout)
    return keep_fields(family, config, base, origin, layout.get("dtype", ""), tensors)


def check_complete(model: ModelArrays, table: RuleTable) -> None:
    """Raises ValueError unless the rules store every array of the model. Lists every problem."""
    shapes = {name: array.shape for name, array in model.arrays.items()}
    if problems := check_arrays(table.bound(model.stacks), shapes):
        raise ValueError("; ".join(problems))


class NamedArrays(Protocol):
    """Arrays by name, and how layers are stacked in them; see `rules.rule.Stacks`."""

    @property
    def stacks(self) -> Stacks:
        """The layers under each label."""

    @property
    def arrays(self) -> Mapping[str, TensorSource]:
        """The arrays, none of them read yet."""


def export_tensors(model: NamedArrays, table: RuleTable) -> Iterator[tuple[str, TensorSource]]:
    """Yields every tensor to store, by name, as a source that reads from the model's arrays."""
    rules = table.bound(model.stacks)
    fused = fused_parts(rules)
    part_names = {name for names in fused.values() for name in names}
    parts: dict[str, TensorSource] = {}
    originals: dict[str, TensorSource] = {}
    for rule, sizes in rules:
        transfer = rule.exporting(sizes)
        for name, index in transfer.target.names(sizes):
            tensor = transfer_tensor(transfer, index, model.arrays)
            originals[name] = tensor
            if name in part_names:
                parts[name] = tensor
            else:
                yield name, tensor
    for whole, names in fused.items():
        yield whole, concatenate_rows([parts[name] for name in names])
    for copy in table.copies:
        yield copy, originals[table.tied[copy]]
    for derived in table.derived:
        yield derived.name, from_array(derived.compute())
