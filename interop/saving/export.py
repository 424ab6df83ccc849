"""What a checkpoint of a family will consist of: its files, laid out, and its tensors, unread."""

import dataclasses
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.checkpoint_origin import Origin
from jaxllm.interop.families import FAMILIES, Family, Layout, Table, nearest
from jaxllm.interop.formats.file_writer import PlannedFile
from jaxllm.interop.formats.lazy_tensor import (
    TensorSource,
    concatenate_rows,
    from_array,
    transfer_tensor,
)
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.formats.table import (
    FORMATS,
    TensorFormat,
    tensor_formats,
    writable_formats,
)
from jaxllm.interop.loading.model_arrays import Parameters
from jaxllm.interop.loading.plan import fused_parts
from jaxllm.interop.loading.user_family import FORMAT as USERS_FORMAT
from jaxllm.interop.loading.user_family import known_family, resolve_family

COMPANIONS = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("chat_template*", "generation_config.json", "*.tiktoken"),
)


@dataclasses.dataclass(frozen=True)
class Export:
    """A checkpoint to be written: its large files in any order, then its small ones in theirs."""

    family: Family
    tensors: Mapping[str, TensorSource]
    files: tuple[PlannedFile, ...]
    texts: Mapping[str, bytes]  # the config and the index, by name


def plan_export(
    parameters: Parameters,
    families: Sequence[Family],
    model_parallel: int | None,
    max_shard: int,
    chosen: str | None = None,
) -> Export:
    """Lays out the checkpoint in the spelling of the first family that can say what the model is.

    `chosen` is the format to write, by default the family's own. Raises CheckpointError, with what
    each family cannot say, if none can.
    """
    family, config, table = choose_family(parameters, families, model_parallel)
    tensors = dict(export_tensors(parameters, table))
    row = FORMATS[chosen or family.format]
    if not isinstance(row, TensorFormat) or row.lay_out is None:
        raise CheckpointError(f"format={row.name!r} is not one that a family's tensors can be in")
    files, index = row.lay_out(tensors, table.file, max_shard)
    text = (json.dumps(config, indent=2) + "\n").encode()
    config_file = {family.config_file: text} if family.config_file else {}
    return Export(family, tensors, tuple(files), {**config_file, **index})


def possible_families(
    origin: Origin | None, chosen: str | None, model_parallel: int | None, rules: Any = None
) -> list[Family]:
    """The families of the format to write, the model's own first; none if the format needs none.

    `rules` are those of format "rules", which a model that came by such need not be given again.
    Raises CheckpointError for a format that does not exist, or has no shards to be cut into.
    """
    users = _users_family(origin, chosen, rules) if chosen in (None, USERS_FORMAT) else None
    if chosen not in (None, *(known := writable_formats())):
        raise CheckpointError(
            f"format={chosen!r} is not one of {', '.join(known)}{nearest(chosen, known)}"
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
    """The `Family.format` of the families that name the tensors of a format, if it has such."""
    row = FORMATS[chosen]
    return row.family_format if isinstance(row, TensorFormat) else None


def _check_shards(chosen: str, model_parallel: int | None) -> None:
    """Raises CheckpointError if model-parallel shards are asked for of a format without."""
    sharded = [row.name for row in tensor_formats() if row.first_shard]
    if model_parallel is not None and chosen not in sharded:
        fitting = " or ".join(map(repr, sharded))
        raise CheckpointError(
            f"model_parallel={model_parallel} is for format {fitting}, not {chosen!r}"
        )


def _users_family(origin: Origin | None, chosen: str | None, rules: Any) -> Family | None:
    """The family of these rules, or of those that the model came by; None if it came by none."""
    if rules is not None:
        return resolve_family(rules)
    if origin is not None and origin.family not in (family.name for family in FAMILIES):
        return known_family(origin.family)
    if chosen == USERS_FORMAT:
        raise CheckpointError(f"format={chosen!r} is that of rules of your own: give rules=")
    return None


def copy_companions(folder: Path, origin: Origin | None, *others: Path) -> None:
    """Takes the tokenizer and generation files along that the model's origin or others have."""
    places = [*([] if origin is None else [Path(origin.directory)]), *others]
    for place, pattern in itertools.product(places, COMPANIONS):
        for file in place.glob(pattern):
            if file.is_file():
                shutil.copy2(file, folder / file.name)


def write_texts(folder: Path, texts: Mapping[str, bytes]) -> None:
    """Writes the small files in their order, each whole or not there."""
    for name, text in texts.items():
        partial = folder / f"{name}.partial"
        with partial.open("wb") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, folder / name)


def choose_family(
    parameters: Parameters, families: Sequence[Family], model_parallel: int | None
) -> tuple[Family, dict, Table]:
    """The first family that can say what the model is, its config file and its tensors."""
    origin, problems = parameters.origin, []
    for family in families:
        base, layout = {}, Layout()
        if origin is not None and origin.family == family.name:
            base, layout = json.loads(origin.config), Layout(**json.loads(origin.layout)).written
        if model_parallel is not None:
            layout = dataclasses.replace(layout, model_parallel=model_parallel)
        try:
            family.check_class(parameters.config)
            config = family.write_config(parameters.config, base)
            return family, config, family.table(parameters.config, layout)
        except ValueError as error:
            problems.append(f"{family.name}: {error}")
    raise CheckpointError(problems, f"cannot write this model as {families[0].format!r}")


def export_tensors(parameters: Parameters, table: Table) -> Iterator[tuple[str, TensorSource]]:
    """Every tensor to be stored, to be put together from the model's arrays."""
    rules = table.bound(parameters.stacks)
    fused = fused_parts(rules)
    part_names = {name for names in fused.values() for name in names}
    parts: dict[str, TensorSource] = {}
    originals: dict[str, TensorSource] = {}
    for rule, sizes in rules:
        transfer = rule.exporting(sizes)
        for name, index in transfer.target.names(sizes):
            tensor = transfer_tensor(transfer, index, parameters.arrays)
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
