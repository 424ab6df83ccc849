"""Converts checkpoints tensor by tensor, without building a model; resumes after a kill."""

import dataclasses
import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.checkpoint_origin import KEPT, Origin, copy_files
from jaxllm.config import Dtype
from jaxllm.errors import CheckpointArgumentError, NarrowingError
from jaxllm.hub import local_path
from jaxllm.interop.adapters.merging import open_merged
from jaxllm.interop.formats import orbax
from jaxllm.interop.formats.byte_sizes import parse_size
from jaxllm.interop.formats.file_writer import CHUNK_BYTES, WORKERS, Digest, in_threads
from jaxllm.interop.formats.lazy_tensor import find_overflows
from jaxllm.interop.formats.source_files import SourceChangedError, check_unchanged, identify
from jaxllm.interop.formats.table import CheckpointWriter, model_format
from jaxllm.interop.loading.model_arrays import ModelArrays, open_model_arrays
from jaxllm.interop.optimizer_state.export_state import OptimizerExport, plan_training_export
from jaxllm.interop.saving.carried import keep_carried
from jaxllm.interop.saving.export import plan_export, possible_families
from jaxllm.interop.saving.save import check_is_free, take_name
from jaxllm.storage.paths import check_is_utf8, check_output

from .export_writer import ExportWriter
from .journal import NAME, Journal

# At most this many copies of a chunk per thread, among them: as read, in the model's layout, in the
# checkpoint's layout, in C order.
COPIES = 5

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]  # takes the bytes done and the total


@dataclasses.dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    Attributes:
        format_name: the family whose format was written, or "native".
        num_units: the number of tensors, or of array chunks in a native checkpoint.
        num_bytes: the bytes of all of them.
        num_bytes_kept: the bytes that an earlier, killed attempt had already written.
    """

    format_name: str
    num_units: int
    num_bytes: int
    num_bytes_kept: int


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    to: str = "hf",
    dtype: Dtype | None = None,
    model_parallel: int | None = None,
    step: int | None = None,
    max_ram: int | str = "256MiB",
    max_shard: int | str = "5GB",
    progress: Progress | None = None,
    rules: Any = None,
    strict: bool = True,
    allow: Sequence[str] = (),
    optimizer: OptimizerExport | None = None,
    workers: int = WORKERS,
    merge: bool | str | Path = False,
) -> Conversion:
    """Converts a checkpoint to another format; resumes if it was killed, and returns if it is done.

    Args:
        source: a checkpoint of any known family, a native checkpoint, or a run.
        destination: a folder that does not exist yet, or is empty.
        to: one of `formats.table.FORMATS`, such as "hf", "meta" or "native".
        dtype: of all tensors; by default as stored. Warns of numbers that become zero.
        model_parallel: the number of shards to write, for "meta".
        step: of a run; by default the newest.
        max_ram: host memory for tensors in flight: bytes, or a text like "256MiB".
        max_shard: the most bytes of tensors in a safetensors shard.
        progress: called with the bytes done and the total, from several threads.
        rules: as for `load_pretrained`; also for `to="rules"`.
        strict: as for `load_pretrained`.
        allow: as for `load_pretrained`.
        optimizer: the optimizer state of the run at that step, to be written for PyTorch too.
        workers: the number of threads, each of which writes one tensor at a time.
        merge: write the base of an adapter with it merged in: the base, or True for its own.

    Raises:
        CheckpointError: the source is no checkpoint or changed, the format cannot express it,
            numbers overflow `dtype`, or another conversion is in the way.
        UserError: `dtype`, `max_ram` or `max_shard` is not valid.
    """
    source, destination = local_path(source).resolve(), check_output(destination).resolve()
    chunk_bytes = max(min(parse_size(max_ram) // (workers * COPIES), CHUNK_BYTES), 1)
    read = partial(open_merged, base=merge) if merge else open_model_arrays
    opened = read(source, step=step, rules=rules, dtype=dtype, strict=strict, allow=allow)
    before, model = identify(opened.files), _cast(opened, dtype, to, destination)
    writer = _writer(model, to, model_parallel, parse_size(max_shard), rules, optimizer)
    if _is_complete(writer, destination, chunk_bytes):
        return _conversion(writer, kept=sum(writer.units.values()))
    plan = {"to": to, "dtype": dtype, "model_parallel": model_parallel, "merge": str(merge)}
    plan |= {"optimizer": optimizer and optimizer.form, **_describe(source, before, writer)}
    left = _partial_folder(destination)  # with a journal of the tensors' hashes
    with Journal(left / NAME, plan) as journal, _discarding(left, opened, dtype, chunk_bytes):
        workers = min(workers, max(parse_size(max_ram) // max(writer.most_held, 1), 1))
        work = _Work(writer, left / "checkpoint", journal, chunk_bytes, workers, progress)
        work.complete(destination, source, opened.origin, before)
        shutil.rmtree(left)
    return _conversion(writer, work.kept, model)


def _cast(model: ModelArrays, dtype: Dtype | None, to: str, destination: Path) -> ModelArrays:
    """Returns the arrays in the dtypes that they are written in."""
    if to != orbax.NAME:
        return model.astype(dtype)
    check_is_utf8(destination)
    return model.astype(dtype).as_on_devices()


def _conversion(
    writer: CheckpointWriter, kept: int, model: ModelArrays | None = None
) -> Conversion:
    """Returns what was done; logs a warning on numbers of `model` that became zero meanwhile."""
    if model is not None and model.zeroed is not None and (warning := model.zeroed.describe()):
        # Nothing is known of an earlier attempt.
        logger.warning("%s%s", warning, "\n  (in what this attempt wrote)" if kept else "")
    return Conversion(writer.format_name, len(writer.units), sum(writer.units.values()), kept)


def _describe(source: Path, files: Mapping[Path, str], writer: CheckpointWriter) -> dict[str, str]:
    """Returns the identity of the source's files, and a digest of what will be written."""
    named = {os.path.relpath(file, source): text for file, text in files.items()}
    return named | {"the rest of the plan": hashlib.sha256(writer.plan().encode()).hexdigest()}


@contextmanager
def _discarding(
    partial: Path, model: ModelArrays, dtype: Dtype | None, chunk_bytes: int
) -> Iterator[None]:
    """Context that removes an unfinished conversion which must not be resumed.

    Raises:
        SourceChangedError: what was written may mix two checkpoints.
        NarrowingError: the arrays of `model` do not fit into `dtype`. Says how many of each.
    """
    try:
        yield
    except SourceChangedError:
        shutil.rmtree(partial)
        raise
    except NarrowingError:
        shutil.rmtree(partial)
        to = np.dtype(dtype or "float32")  # which float64 becomes without a dtype
        found = find_overflows(model.arrays, to, chunk_bytes)
        wider = "choose a dtype with a wider range, such as bfloat16"
        raise NarrowingError([*found[1:], wider], found[0]) from None


def _writer(
    model: ModelArrays,
    to: str,
    model_parallel: int | None,
    max_shard: int,
    rules: Any,
    optimizer: OptimizerExport | None,
) -> CheckpointWriter:
    families = possible_families(model.origin, to, model_parallel, rules)
    if optimizer is not None:
        return ExportWriter(plan_training_export(model, families, max_shard, optimizer, to))
    if (own_format := model_format(to)) is not None:
        return own_format.writer(model.config, model.origin, model.arrays)
    return ExportWriter(plan_export(model, families, model_parallel, max_shard, to))


class _Work:
    """The units of a conversion, and the bytes of them that are done."""

    def __init__(
        self,
        writer: CheckpointWriter,
        folder: Path,
        journal: Journal,
        chunk_bytes: int,
        workers: int,
        progress: Progress | None,
    ):
        self.writer, self.folder, self.journal = writer, folder, journal
        self.chunk_bytes, self.workers, self._progress = chunk_bytes, workers, progress
        self.total = sum(writer.units.values())
        self.done = self.kept = 0
        self._lock = threading.Lock()

    def complete(
        self, destination: Path, source: Path, origin: Origin | None, before: Mapping[Path, str]
    ) -> None:
        """Writes all missing units and gives the checkpoint its name.

        Args:
            destination: the name.
            source: the checkpoint that is converted.
            origin: that of the model; its files, such as the tokenizer, are copied.
            before: the identity of the source's files when the conversion began.

        Raises:
            SourceChangedError: they changed since.
        """
        if not self.folder.exists() and destination.is_dir() and self._has_every_unit:
            self.kept = self.total  # killed after the rename: only the journal is left to remove
            return
        check_is_free(destination)
        self.writer.begin(self.folder)
        own = self.folder / self.writer.files_folder
        own.mkdir(exist_ok=True)
        copy_files(origin, own, source)
        if self.writer.files_folder == KEPT:
            keep_carried(origin, own)
        units = list(self.writer.units)
        digests = dict(zip(units, in_threads(self._write, units, self.workers), strict=True))
        self.writer.finish(self.folder, digests)
        check_unchanged(before)
        take_name(self.folder, destination)

    @property
    def _has_every_unit(self) -> bool:
        """Whether the journal lists every unit."""
        return self.journal.done.keys() >= self.writer.units.keys()

    def _write(self, unit: str) -> Digest:
        """Writes a unit, unless the folder already has it as the journal says."""
        recorded = self.journal.done.get(unit)
        if recorded is not None and self.writer.written(self.folder, unit) == recorded.sha256:
            self._advance(self.writer.units[unit])
            with self._lock:
                self.kept += self.writer.units[unit]
            return recorded
        digest = self.writer.write(self.folder, unit, self.chunk_bytes, self._advance)
        self.journal.add(unit, digest)
        return digest

    def _advance(self, nbytes: int) -> None:
        with self._lock:
            self.done += nbytes
            if self._progress is not None:
                self._progress(self.done, self.total)


def _is_complete(writer: CheckpointWriter, destination: Path, chunk_bytes: int) -> bool:
    """Whether an attempt was killed after the checkpoint had its name and the journal was gone."""
    partial = _name_partial(destination)
    if (partial / NAME).is_file() or not destination.is_dir() or not any(destination.iterdir()):
        return False
    is_left = partial.is_dir() and not any(partial.iterdir())
    if (partial.exists() and not is_left) or not writer.holds(destination, chunk_bytes):
        return False
    if is_left:
        partial.rmdir()
    return True


def _name_partial(destination: Path) -> Path:
    """Returns where a conversion is until it is complete."""
    return destination.with_name(f"{destination.name}.partial")


def _partial_folder(destination: Path) -> Path:
    """Returns the folder of an unfinished conversion, which it creates if there is none.

    Raises:
        CheckpointArgumentError: the destination is not free, or something else has the folder's
            name.
    """
    partial = _name_partial(destination)
    if not partial.exists():
        check_is_free(destination)
    elif not partial.is_dir() or (any(partial.iterdir()) and not (partial / NAME).is_file()):
        raise CheckpointArgumentError(
            f"{partial} exists but is not an unfinished conversion: move it or delete it"
        )
    partial.mkdir(parents=True, exist_ok=True)
    return partial
