"""Stopping a run: on SIGTERM after the step that runs, on Ctrl-C at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils

from jaxllm.checkpointing.orbax_layout import list_steps
from jaxllm.storage.paths import open_path
from jaxllm.train.config import TrainConfig

ShouldStop = Callable[[int], bool]  # takes the step that was just done


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training; the message says where the run stands and how to go on."""


def resume_command(config: TrainConfig) -> str:
    """Returns the command that continues a run."""
    return f"jaxllm train {open_path(config.output) / 'config.yaml'} --resume"


def interruption(config: TrainConfig, step: int | None) -> Interrupted:
    """Returns what to raise for a run that was interrupted after `step` steps; None: before any."""
    saved = list(list_steps(open_path(config.output)))
    newest = f"the newest checkpoint is of step {saved[-1]}" if saved else "nothing is saved yet"
    place = "before the first step" if step is None else f"after step {step}"
    is_there = (open_path(config.output) / "config.yaml").exists()
    command = resume_command(config) if is_there else "the same command"
    return Interrupted(f"interrupted {place}; {newest}; continue with {command}")


@contextmanager
def naming_the_run(config: TrainConfig) -> Iterator[None]:
    """Context before the steps of a run, in which Ctrl-C says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise interruption(config, None) from None


@contextmanager
def stopping_on_sigterm() -> Iterator[ShouldStop]:
    """Context in which SIGTERM asks the run to stop instead of killing it.

    Yields:
        Whether to stop after a step. All processes of a multi-host run must ask after each step,
        and all are told to stop after the same one, whichever of them got the signal.
    """
    if jax.distributed.is_initialized():  # jax then receives the signal
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():  # only it may set handlers
        yield lambda _: False
        return
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield lambda _: asked.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
