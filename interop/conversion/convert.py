"""Checkpoints to checkpoints, tensor by tensor: no model is built, and a killed attempt goes on."""

import dataclasses
import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxllm.config import Dtype
from jaxllm.interop.formats.byte_sizes import parse_size
from jaxllm.interop.formats.file_writer import CHUNK_BYTES, WORKERS, Digest, in_threads
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.formats.table import Target, model_format
from jaxllm.interop.loading.model_arrays import Parameters, read_path
from jaxllm.interop.optimizer_state.export_state import OptimizerExport, plan_training_export
from jaxllm.interop.saving.export import copy_companions, plan_export, possible_families
from jaxllm.interop.saving.save import check_is_free, take_name

from .file_target import FileTarget
from .journal import NAME, Journal

# Of a chunk there may be: what was read, the model's part, that in the new spelling, in C order.
COPIES = 5

Progress = Callable[[int, int], None]  # bytes done, of how many


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a conversion has written."""

    spelling: str  # the family, or "native"
    num_units: int  # tensors, or chunks of a native checkpoint's arrays
    num_bytes: int
    num_bytes_kept: int  # were there already, from an attempt that was killed


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
    optimizer: OptimizerExport | None = None,
    workers: int = WORKERS,
) -> Conversion:
    """Writes a checkpoint in another spelling. After a kill, the same call goes on.

    Until it is complete, the checkpoint lies in `destination`.partial with a journal of the tensors
    that are done. An attempt to go on reads them again, and rewrites what is not as the journal
    says.

    Args:
        source: a folder of any known family, a native checkpoint, or a run.
        destination: a folder that does not exist yet, or is empty.
        to: one of `formats.table.FORMATS`, such as "hf", "meta" or "native".
        dtype: of all tensors; by default each one's own, as stored.
        model_parallel: how many shards to write, for "meta".
        step: of a run; by default its newest.
        max_ram: host memory for tensors in flight: bytes, or a text like "256MiB".
        max_shard: where to begin another safetensors file.
        progress: called with the bytes done and to be done, from several threads.
        rules: of a model of your own, as docs/rules.md says: to read the source by, which may then
            be a file, and to write by if `to` is "rules".
        optimizer: the state of the run's optimizer at that step, to be written as PyTorch's.
        workers: threads, each of which writes a tensor at a time.

    Raises:
        CheckpointError: the source is not a checkpoint, the format cannot say what the model is,
            or an unfinished conversion lies there that was begun otherwise.
    """
    source, destination = Path(source).resolve(), Path(destination).resolve()
    chunk_bytes = max(min(parse_size(max_ram) // (workers * COPIES), CHUNK_BYTES), 1)
    parameters = read_path(source, step, rules).astype(dtype)
    target = _target(parameters, to, model_parallel, parse_size(max_shard), rules, optimizer)
    plan = {
        "to": to,
        "dtype": dtype,
        "model_parallel": model_parallel,
        "optimizer": None if optimizer is None else optimizer.form,
        **_state(source, parameters),
        "the rest of the plan": hashlib.sha256(target.plan().encode()).hexdigest(),
    }
    partial = destination.with_name(f"{destination.name}.partial")
    _check_is_ours(partial, destination)
    partial.mkdir(parents=True, exist_ok=True)
    folder = partial / "checkpoint"
    with Journal(partial / NAME, plan) as journal:
        work = _Work(target, folder, journal, chunk_bytes, workers, progress)
        if not folder.exists() and destination.is_dir() and work.has_everything:
            work.kept = work.total  # an attempt was killed when only this was left to do:
        else:
            check_is_free(destination)
            target.begin(folder)
            copy_companions(folder, parameters.origin, source)
            work.run()
            take_name(folder, destination)
        shutil.rmtree(partial)
    return Conversion(target.spelling, len(target.units), work.total, work.kept)


def _target(
    parameters: Parameters,
    to: str,
    model_parallel: int | None,
    max_shard: int,
    rules: Any,
    optimizer: OptimizerExport | None,
) -> Target:
    families = possible_families(parameters.origin, to, model_parallel, rules)
    if optimizer is not None:
        return FileTarget(plan_training_export(parameters, families, max_shard, optimizer, to))
    if (own_arrays := model_format(to)) is not None:
        return own_arrays.target(parameters.config, parameters.origin, parameters.arrays)
    return FileTarget(plan_export(parameters, families, model_parallel, max_shard, to))


class _Work:
    """The units of a conversion, and how many of them are done."""

    def __init__(
        self,
        target: Target,
        folder: Path,
        journal: Journal,
        chunk_bytes: int,
        workers: int,
        progress: Progress | None,
    ):
        self.target, self.folder, self.journal = target, folder, journal
        self.chunk_bytes, self.workers, self._progress = chunk_bytes, workers, progress
        self.total = sum(target.units.values())
        self.done = self.kept = 0
        self._lock = threading.Lock()

    @property
    def has_everything(self) -> bool:
        """Whether the journal has every unit."""
        return self.journal.done.keys() >= self.target.units.keys()

    def run(self) -> None:
        """Writes what is not there."""
        units = list(self.target.units)
        digests = dict(zip(units, in_threads(self._write, units, self.workers), strict=True))
        self.target.finish(self.folder, digests)

    def _write(self, unit: str) -> Digest:
        """Writes a unit, unless it is there."""
        noted = self.journal.done.get(unit)
        if noted is not None and self.target.written(self.folder, unit) == noted.sha256:
            self._advance(self.target.units[unit])
            with self._lock:
                self.kept += self.target.units[unit]
            return noted
        digest = self.target.write(self.folder, unit, self.chunk_bytes, self._advance)
        self.journal.add(unit, digest)
        return digest

    def _advance(self, nbytes: int) -> None:
        with self._lock:
            self.done += nbytes
            if self._progress is not None:
                self._progress(self.done, self.total)


def _check_is_ours(partial: Path, destination: Path) -> None:
    """Refuses to begin where a checkpoint is, or to go on with what was not begun here."""
    if not partial.exists():
        check_is_free(destination)
    elif not partial.is_dir() or (any(partial.iterdir()) and not (partial / NAME).is_file()):
        raise CheckpointError(f"{partial} is in the way, and is no unfinished conversion")


def _state(source: Path, parameters: Parameters) -> dict[str, Any]:
    """Size and time of change of every file of the source, by name."""
    stats = {file: file.stat() for file in parameters.files}
    return {
        os.path.relpath(file, source): f"{stat.st_size} bytes of {stat.st_mtime_ns}"
        for file, stat in stats.items()
    }
