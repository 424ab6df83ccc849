"""The checkpoint to continue a run from: the newest that is sound; damaged ones are kept aside."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax

from jaxllm.checkpointing.orbax_layout import METADATA_FILE, is_step
from jaxllm.distributed.gather import gather_texts
from jaxllm.errors import CheckpointError
from jaxllm.storage.mirror import move
from jaxllm.storage.paths import open_path
from jaxllm.train.config import ConfigError

log = logging.getLogger("jaxllm")

ASIDE = "aside"  # the folder of a run for checkpoints that it does not continue from
ABOUT = "Checkpoints that the run was not continued from, as they are damaged or too new.\n"
Resumed = TypeVar("Resumed")


def find_steps(run: Path) -> dict[int, Path]:
    """Maps the number of each checkpoint of a run, whole or not, to its path, oldest first.

    All processes of a multi-host run must call this, and get what process 0 finds.
    """
    folder = open_path(run / "checkpoints")
    found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    names = json.loads(gather_texts(json.dumps(found))[0])
    steps = sorted(int(name) for name in names if name.isdecimal())
    return {step: folder / str(step) for step in steps}


def load_newest(run: Path, load: Callable[[Path], Resumed]) -> Resumed:
    """Returns what `load` makes of the newest sound checkpoint, and moves newer ones aside.

    All processes of a multi-host run must call this.

    Args:
        run: the folder of the run, which has checkpoints.
        load: takes the folder of a step; raises CheckpointError, in all processes, if it is
            damaged.

    Raises:
        CheckpointError: all are damaged; lists the problems of each and moves none.
    """
    damaged: dict[Path, CheckpointError] = {}
    for step, path in reversed(find_steps(run).items()):
        try:
            found = _load(path, load)
        except CheckpointError as error:
            damaged[path] = error
            continue
        for other, why in damaged.items():
            kept = _move_aside(other)
            problem = " ".join(why.problems[0].split())
            log.info(
                "checkpoint %s  damaged: %s  kept in %s  resuming from step %d",
                *(other.name, problem, kept, step),
            )
        return found
    problems = [line for path, why in damaged.items() for line in why.within(path.name)]
    raise CheckpointError(problems, f"{run / 'checkpoints'} has no sound checkpoint")


def load_chosen(run: Path, step: int, load: Callable[[Path], Resumed]) -> Resumed:
    """Returns what `load` makes of the checkpoint of a step, and moves newer ones aside.

    Raises:
        ConfigError: the run has no checkpoint of that step.
        CheckpointError: it is damaged.
    """
    steps = find_steps(run)
    if step not in steps:
        known = ", ".join(map(str, steps)) or "none"
        raise ConfigError(f"{run} has no checkpoint of step {step}; it has {known}")
    found = _load(steps[step], load)
    for newer in (path for number, path in steps.items() if number > step):
        kept = _move_aside(newer)
        log.info("checkpoint %s  newer than step %d  kept in %s", newer.name, step, kept)
    return found


def _load(path: Path, load: Callable[[Path], Resumed]) -> Resumed:
    if not path.is_dir():
        raise CheckpointError("it is not a folder", path)
    if not is_step(path):
        raise CheckpointError(f"{METADATA_FILE} is missing", path)
    return load(path)


def _move_aside(step: Path) -> Path:
    """Moves a checkpoint out of the way of Orbax; returns where it is."""
    folder = step.parent.parent / ASIDE
    names = (step.name, *(f"{step.name}.{number}" for number in range(2, 1000)))
    kept = next(folder / name for name in names if not (folder / name).exists())
    gather_texts("")  # all have chosen the name before process 0 takes it
    if jax.process_index() == 0:
        folder.mkdir(exist_ok=True)
        if not folder.exists():  # on an object store, where a folder is there if something is in it
            (folder / "README").write_text(ABOUT)
        move(step, kept)
    gather_texts("")  # all see the folder without it
    return kept
