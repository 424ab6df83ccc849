"""Models to checkpoints, in the spelling of any family that can say what they are."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from uuid import uuid4

import jax
import numpy as np

from jaxllm.models.decoder import Decoder
from jaxllm.origin import Origin
from jaxllm.params import named_parameters, stacks

from . import native
from .directory import write_tensors
from .families import FAMILIES, Family, Layout, Table
from .plan import fused_parts
from .rules import Index, Transfer
from .tensors import CheckpointError, TensorSource

Format = Literal["hf", "meta", "tlama", "native"]

COMPANIONS = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("chat_template*", "generation_config.json", "*.tiktoken"),
)


def save_pretrained(
    model: Decoder,
    path: str | Path,
    *,
    format: Format | None = None,  # noqa: A002 - the word that users expect
    model_parallel: int | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes the model where transformers, Meta's code, tlama-core or jaxllm can read it.

    Args:
        model: as `load_pretrained` or training made it; its layers scanned or not.
        path: a folder that does not exist yet, or is empty.
        format: "hf", "meta", "tlama" or "native"; by default that of the model's origin, and
            "hf" for a model that has none.
        model_parallel: how many shards to write, for "meta"; by default as many as were read.
        max_shard_bytes: where to begin another safetensors file.

    Raises:
        CheckpointError: the folder is not empty, or the format cannot say what the model is.
    """
    path = Path(path).resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{path} exists and is not an empty folder; choose a new one")
    origin = model.origin
    families = _possible_families(origin, format, model_parallel)
    if not families:
        with _complete_folder(path) as partial:
            native.save(model, partial)
            _copy_companions(model.origin, partial)
        return
    family, config, table = _spell(model, families, model_parallel)
    with _complete_folder(path) as partial:
        write_tensors(partial, family, dict(_sources(model, table)), max_shard_bytes)
        (partial / family.config_file).write_text(json.dumps(config, indent=2) + "\n")
        _copy_companions(origin, partial)


def _possible_families(
    origin: Origin | None, chosen: str | None, model_parallel: int | None
) -> list[Family]:
    """The families of the format to write, the model's own first; none for a native checkpoint."""
    formats = dict.fromkeys(family.format for family in FAMILIES)
    if chosen not in (None, "native", *formats):
        known = ", ".join([*formats, "native"])
        raise CheckpointError(f"format={chosen!r} is not one of {known}")
    own = None if origin is None else origin.family
    if chosen is None:
        chosen = next((family.format for family in FAMILIES if family.name == own), "hf")
    families = [family for family in FAMILIES if family.format == chosen]
    if model_parallel is not None and not any(f.storage == "consolidated" for f in families):
        raise CheckpointError(
            f"model_parallel={model_parallel} is for format 'meta', not {chosen!r}"
        )
    return sorted(families, key=lambda family: family.name != own)


def _spell(
    model: Decoder, families: Sequence[Family], model_parallel: int | None
) -> tuple[Family, dict, Table]:
    """The first family that can say what the model is, its config file and its tensors."""
    origin, problems = model.origin, []
    for family in families:
        base, layout = {}, Layout()
        if origin is not None and origin.family == family.name:
            base, layout = json.loads(origin.config), Layout(**json.loads(origin.layout))
        if model_parallel is not None:
            layout = dataclasses.replace(layout, model_parallel=model_parallel)
        try:
            config = family.write_config(model.config, base)
            return family, config, family.table(model.config, layout)
        except ValueError as error:
            problems.append(f"{family.name}: {error}")
    raise CheckpointError(problems, f"cannot write this model as {families[0].format!r}")


def _sources(model: Decoder, table: Table) -> Iterator[tuple[str, TensorSource]]:
    """Every tensor to be stored, put together from the model's arrays when its turn comes."""
    arrays = {name: variable.get_value() for name, variable in named_parameters(model).items()}
    rules = table.bound(stacks(model))
    parts: dict[str, TensorSource] = {}
    fused = {name: whole for whole, names in fused_parts(rules).items() for name in names}
    for rule, sizes in rules:
        transfer = rule.exporting(sizes)
        # All tensors of one rule come from the same array if layers are stacked.
        on_host = functools.lru_cache(maxsize=1)(lambda name: np.asarray(arrays[name]))
        for name, index in transfer.target.names(sizes):
            source = _source(transfer, index, on_host, arrays)
            if name in fused:
                parts[name] = source
            else:
                yield name, source
    for whole, names in fused_parts(rules).items():
        yield whole, _joined([parts[name] for name in names])
    for derived in table.derived:
        value = derived.compute()
        yield derived.name, TensorSource(value.dtype, value.shape, derived.compute)


def _source(
    transfer: Transfer,
    index: Index,
    on_host: Callable[[str], np.ndarray],
    arrays: Mapping[str, jax.Array],
) -> TensorSource:
    shape = transfer.target.shape(transfer.sizes)
    pieces = list(transfer.pieces(index, [(0, size) for size in shape]))
    dtype = np.dtype(arrays[pieces[0].name].dtype)

    def produce() -> np.ndarray:
        out = np.empty(shape, dtype)
        for piece in pieces:
            transfer.copy(piece, on_host(piece.name), out)
        return out

    return TensorSource(dtype, shape, produce)


def _joined(parts: Sequence[TensorSource]) -> TensorSource:
    """The fused tensor of these parts."""
    first = parts[0]
    shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
    return TensorSource(
        first.dtype, shape, lambda: np.concatenate([part.produce() for part in parts])
    )


def _copy_companions(origin: Origin | None, folder: Path) -> None:
    """Takes the tokenizer and generation files along, if the model's origin still has them."""
    if origin is None:
        return
    for pattern in COMPANIONS:
        for file in Path(origin.directory).glob(pattern):
            if file.is_file():
                shutil.copy2(file, folder / file.name)


@contextmanager
def _complete_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` that takes its name when everything in it is written."""
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            path.rmdir()
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
