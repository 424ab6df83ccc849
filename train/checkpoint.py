"""Run checkpoints: parameters, optimizer state, data fingerprint and the resolved config."""

import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from jaxllm.checkpointing.orbax_layout import ADAPTER, REFERENCE, reason, step_metadata
from jaxllm.checkpointing.restore import digest_items, restore
from jaxllm.errors import UserError
from jaxllm.models import Model
from jaxllm.params import describe
from jaxllm.storage.paths import is_remote

from .config import TrainConfig, to_dict
from .step import TrainState


class Checkpoints:
    """Saves the checkpoints of one run. Create it with `open_checkpoints`."""

    def __init__(self, folder: Any, checkpointer: ocp.training.Checkpointer):
        self._folder = folder
        self._checkpointer = checkpointer
        # An object store has no folders, which could be replaced.
        self._created = None if is_remote(folder) else folder.stat()
        self._unfinished: tuple[int, int] | None = None  # step and bytes of what is being written

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint, or None if there is none."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(
        self,
        state: TrainState,
        config: TrainConfig,
        model: Model,
        data: dict[str, Any],
        base: dict[str, Any] | None = None,
    ) -> None:
        """Starts writing `state` in the background; does nothing if its step is already saved.

        Args:
            state: may be donated as soon as this returns.
            config: stored in the metadata, to be compared when the run is resumed.
            model: only its description (config and origin) is stored.
            data: the fingerprint of the batches, `Batches.fingerprint()`.
            base: the weights of the start that a resumed run needs, such as an adapter's base:
                `describe_base`.

        Raises:
            UserError: this or the previous checkpoint cannot be written; the complete ones are
                kept.
        """
        step = int(state.step)
        if step == self.latest:
            return
        about = {**describe(model), "run": to_dict(config), "data": data}
        if base is not None:
            about[REFERENCE if config.optimizer.lora is None else ADAPTER] = base
        items = {"model": state.params, "optimizer": state.optimizer}
        metadata = step_metadata(about, digest_items(items))
        # While an earlier checkpoint is still being written, Orbax silently skips a new one.
        self.wait()
        self._unfinished = step, sum(x.nbytes for x in jax.tree.leaves(items))
        with self._reporting():
            self._check_folder()
            self._checkpointer.save_checkpointables_async(
                step, items, force=True, custom_metadata=metadata
            )

    def wait(self) -> None:
        """Waits until the last checkpoint is written. Raises UserError if it cannot be."""
        with self._reporting():
            self._checkpointer.wait()
            if self._unfinished is not None:
                self._check_folder()
        self._unfinished = None

    def close(self) -> None:
        """Ends the background threads; what cannot be written any more was reported before."""
        with suppress(Exception):
            self._checkpointer.close()

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Turns the errors of writing, of any class in Orbax, into one line for the user."""
        try:
            yield
        except Exception as error:
            if self._unfinished is None:
                raise
            step, needed = self._unfinished
            if jax.process_index() == 0:
                self._remove_unfinished(step)  # it may be what fills the disk
            raise UserError(
                f"{self._folder / str(step)}: the checkpoint of {needed:,} bytes cannot be "
                f"written: {_root_cause(error)}; {self._space_left()}"
            ) from error

    def _remove_unfinished(self, step: int) -> None:
        """Removes what was written of a step, until nothing new has come for 0.3 s.

        Orbax writes the items of a step in threads of their own, and reports that one failed while
        others still write.
        """
        if self._created is None:  # a step without its last file is none
            return
        quiet = 0
        for _ in range(50):
            leftovers = list(self._folder.glob(f"{step}.orbax-checkpoint-tmp*"))
            for leftover in leftovers:
                shutil.rmtree(leftover, ignore_errors=True)
            quiet = 0 if leftovers else quiet + 1
            if quiet == 3:
                break
            time.sleep(0.1)

    def _check_folder(self) -> None:
        """Raises FileNotFoundError if the folder is no longer the one that was opened.

        Orbax would create it anew, without the checkpoints that it held.
        """
        if self._created is None:
            return
        if not self._folder.is_dir() or not os.path.samestat(self._folder.stat(), self._created):
            raise FileNotFoundError("the folder was removed or replaced during the run")

    def _space_left(self) -> str:
        """Says how much space is free on the disk or, of an object store, what is kept."""
        with suppress(OSError, ValueError):
            return f"{shutil.disk_usage(self._folder).free:,} bytes are free there"
        return "complete checkpoints, if there are any, are kept"


def load_state(step: Path, abstract: TrainState, start: TrainState | None = None) -> TrainState:
    """Restores the state of a step with the shapes, dtypes and shardings of `abstract`.

    `start` is the state before the first step, of which the parameters that no step holds are.

    Raises:
        CheckpointError: the step is damaged, or has other arrays.
    """
    items = restore(step, {"model": abstract.params, "optimizer": abstract.optimizer})
    number = jax.device_put(jnp.asarray(int(step.name), jnp.int32), abstract.step.sharding)
    fixed = {} if start is None else {"frozen": start.frozen, "reference": start.reference}
    return TrainState(items["model"], items["optimizer"], number, **fixed)


class _Pinned(ocp.training.preservation_policies.PreservationPolicy):
    """Preserves the checkpoints of these steps."""

    def __init__(self, steps: Collection[int]):
        self._steps = steps

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        return [checkpoint.step in self._steps for checkpoint in checkpoints]


@contextmanager
def open_checkpoints(folder: Any, keep: int, pinned: Collection[int] = ()) -> Iterator[Checkpoints]:
    """Opens the checkpoints in `folder`; on exit, waits until the last one is written.

    Args:
        folder: contains one subfolder per saved step.
        keep: how many of the newest checkpoints to keep.
        pinned: steps to keep besides, read at each save.
    """
    policies = ocp.training.preservation_policies
    policy = policies.AnyPreservationPolicy([policies.LatestN(keep), _Pinned(pinned)])
    folder.mkdir(parents=True, exist_ok=True)
    checkpointer = ocp.training.Checkpointer(
        folder, preservation_policy=policy, cleanup_tmp_directories=True
    )
    checkpoints = Checkpoints(folder, checkpointer)
    try:
        yield checkpoints
        checkpoints.wait()
    finally:
        checkpoints.close()


def _root_cause(error: BaseException) -> str:
    """Returns the innermost cause of an error of writing, such as a full disk."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if (code := re.search(r"os_error_code='(\d+)'", str(error))) is not None:  # of TensorStore
        return os.strerror(int(code[1]))
    return reason(error)
