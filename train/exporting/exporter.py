"""Writes exports of a run in a thread, each from the checkpoint of its step."""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax

from jaxllm.checkpointing.orbax_layout import list_steps
from jaxllm.train.config import ConfigError, TrainConfig

# Writes the weights of a run at a step into a new folder that takes its name when it is complete:
# `jaxllm.interop.export_step`.
WriteExport = Callable[..., None]

FOLDER, UNFINISHED = "exports", ".partial"
POLL_S = 0.1
PATIENCE_S = 5.0  # for an export that is not needed any more


class Exporter:
    """The exports of one run. Only process 0 writes. Create it with `open_exporter`.

    Attributes:
        pinned: the step whose checkpoint must stay, since an export is made from it.
    """

    def __init__(self, config: TrainConfig, run: Any, write: WriteExport | None):
        self._every, self._steps, self._keep = config.export.every, config.steps, config.export.keep
        self._options = {
            "to": config.export.format(config.optimizer.lora is not None),
            "dtype": config.export.dtype,
        }
        self._run, self._write = run, write
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self.pinned: set[int] = set()
        if self._every is None:
            return
        try:
            config.export.check(config.optimizer.lora is not None)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if write is None:
            raise ConfigError(
                f"export.every={self._every} needs what writes exports: train(config, "
                "export=jaxllm.interop.export_step)"
            )
        if jax.process_index() == 0:
            self._remove_unfinished()

    def is_due(self, step: int) -> bool:
        """Whether a step is exported."""
        return self._every is not None and (step % self._every == 0 or step == self._steps)

    def begin(self, step: int) -> None:
        """Starts to export a step whose checkpoint is being written; first ends the last export.

        Raises what the last one failed with.
        """
        self.finish()
        self.pinned.clear()
        self.pinned.add(step)
        if jax.process_index() == 0:
            self._thread = threading.Thread(target=self._export, args=(step,), daemon=True)
            self._thread.start()

    def catch_up(self, start: int) -> None:
        """Exports what was to be exported when the run ended; the last is only started.

        Exports of later steps than `start`, where the run goes on, are moved to aside/exports.
        """
        if self._every is None:
            return
        if jax.process_index() == 0:
            self._set_aside(start)
        due = [step for step in list_steps(self._run) if self.is_due(step)]
        for step in due[-self._keep :]:
            if not self._place(step).exists():
                self.begin(step)

    def check(self) -> None:
        """Raises the error of an export, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def finish(self) -> None:
        """Waits until the last export is written. Raises its error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def close(self) -> None:
        """Gives up an export that does not end soon; the next run removes what it has written."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(PATIENCE_S)

    def _place(self, step: int) -> Path:
        return Path(self._run) / FOLDER / str(step)

    def _export(self, step: int) -> None:
        """The thread: waits for the checkpoint, writes, and removes old exports."""
        try:
            while step not in list_steps(self._run):
                if self._ended.wait(POLL_S):
                    return
            assert self._write is not None, "a run with exports has it"
            place = self._place(step)
            place.parent.mkdir(exist_ok=True)
            self._write(Path(self._run), place, step=step, **self._options)
            kept = [int(path.name) for path in place.parent.iterdir() if path.name.isdecimal()]
            for old in sorted(kept)[: -self._keep]:
                _remove(self._place(old))
        except BaseException as error:
            self._error = error

    def _set_aside(self, start: int) -> None:
        for path in (Path(self._run) / FOLDER).glob("*"):
            if path.name.isdecimal() and int(path.name) > start:
                aside = Path(self._run) / "aside" / FOLDER / path.name
                aside.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(aside, ignore_errors=True)
                path.replace(aside)

    def _remove_unfinished(self) -> None:
        for path in (Path(self._run) / FOLDER).glob(f"*{UNFINISHED}"):
            shutil.rmtree(path, ignore_errors=True)


def _remove(place: Path) -> None:
    """Removes an export; first its name, so that a kill leaves no part of it under it."""
    if place.exists():
        old = place.with_name(f"{place.name}.old{UNFINISHED}")
        place.replace(old)
        with suppress(OSError):
            shutil.rmtree(old)


@contextmanager
def open_exporter(config: TrainConfig, run: Any, write: WriteExport | None) -> Iterator[Exporter]:
    """Opens the exports of a run.

    Args:
        config: the run.
        run: its folder.
        write: writes one.

    Raises:
        ConfigError: the config asks for exports that the run does not have, or nothing writes them.
    """
    exporter = Exporter(config, run, write)
    try:
        yield exporter
    finally:
        exporter.close()
