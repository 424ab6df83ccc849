"""Run checkpoints: parameters, optimizer state, data fingerprint and the resolved config."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from jaxllm.checkpointing.orbax_layout import read_step, step_metadata
from jaxllm.checkpointing.restore import digest_items, restore
from jaxllm.models import Model
from jaxllm.params import describe, read_model

from .config import TrainConfig, to_dict
from .step import TrainState


class Checkpoints:
    """Saves and restores the checkpoints of one run. Create it with `open_checkpoints`."""

    def __init__(self, folder: Path, checkpointer: ocp.training.Checkpointer):
        self._folder = folder
        self._checkpointer = checkpointer

    @property
    def latest(self) -> int | None:
        """The step of the newest complete checkpoint, or None if there is none."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(
        self, state: TrainState, config: TrainConfig, model: Model, data: dict[str, Any]
    ) -> None:
        """Starts writing `state` in the background; does nothing if its step is already saved.

        Args:
            state: may be donated as soon as this returns.
            config: stored in the metadata, to be compared when the run is resumed.
            model: only its description (config and origin) is stored.
            data: the fingerprint of the batches, `Batches.fingerprint()`.
        """
        step = int(state.step)
        if step == self.latest:
            return
        about = {**describe(model), "run": to_dict(config), "data": data}
        items = {"model": state.params, "optimizer": state.optimizer}
        metadata = step_metadata(about, digest_items(items))
        # While an earlier checkpoint is still being written, Orbax silently skips a new one.
        self._checkpointer.wait()
        self._checkpointer.save_checkpointables_async(
            step, items, force=True, custom_metadata=metadata
        )

    def read_metadata(self) -> dict[str, Any]:
        """Returns the metadata of the newest checkpoint: config, origin, run and data.

        Raises:
            CheckpointError: jaxllm did not write the checkpoint, or run or data is missing.
        """
        return read_step(self._folder / str(self.latest), "run", "data").about

    def read_model(self) -> Model:
        """Returns the model of the newest checkpoint, without weights.

        Raises:
            CheckpointError: see `jaxllm.params.read_model`.
        """
        return read_model(self._folder / str(self.latest))[0]

    def load(self, abstract: TrainState) -> TrainState:
        """Restores the newest state with the shapes, dtypes and shardings of `abstract`."""
        targets = {"model": abstract.params, "optimizer": abstract.optimizer}
        items = restore(self._folder / str(self.latest), targets)
        step = jax.device_put(jnp.asarray(self.latest, jnp.int32), abstract.step.sharding)
        return TrainState(items["model"], items["optimizer"], step)


@contextmanager
def open_checkpoints(folder: Path, keep: int) -> Iterator[Checkpoints]:
    """Opens the checkpoints in `folder`; on exit, waits until the last one is written.

    Args:
        folder: contains one subfolder per saved step.
        keep: how many of the newest checkpoints to keep.
    """
    policy = ocp.training.preservation_policies.LatestN(keep)
    with ocp.training.Checkpointer(
        folder, preservation_policy=policy, cleanup_tmp_directories=True
    ) as checkpointer:
        yield Checkpoints(folder, checkpointer)
