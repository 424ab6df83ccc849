"""Checkpoints of a run: model, optimizer, position in the data, and the resolved config."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from jaxllm.models import Model
from jaxllm.orbax_layout import METADATA_KEY
from jaxllm.params import describe

from .config import TrainConfig, to_dict
from .step import TrainState


class Checkpoints:
    """The checkpoints of one run, the newest few kept. Use `open_checkpoints`."""

    def __init__(self, checkpointer: ocp.training.Checkpointer):
        self._checkpointer = checkpointer

    @property
    def latest(self) -> int | None:
        """The number of steps taken at the newest complete checkpoint."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(
        self, state: TrainState, config: TrainConfig, model: Model, data: dict[str, Any]
    ) -> None:
        """Begins to write the state in the background; it may be donated at once.

        `data` is what the run knows its examples by.
        """
        step = int(state.step)
        if step == self.latest:
            return
        about = {**describe(model), "run": to_dict(config), "data": data}
        items = {"model": state.params, "optimizer": state.optimizer}
        # Orbax would skip this one, without a word, were the one before still being written.
        self._checkpointer.wait()
        self._checkpointer.save_checkpointables_async(
            step, items, force=True, custom_metadata={METADATA_KEY: about}
        )

    def read_metadata(self) -> dict[str, Any]:
        """The metadata of the newest checkpoint: config, origin, run and data."""
        return self._checkpointer.checkpointables_metadata(self.latest).custom_metadata[
            METADATA_KEY
        ]

    def load(self, abstract: TrainState) -> TrainState:
        """The newest state, each array placed as its abstract counterpart says."""
        targets = {"model": abstract.params, "optimizer": abstract.optimizer}
        items = self._checkpointer.load_checkpointables(self.latest, targets)
        step = jax.device_put(jnp.asarray(self.latest, jnp.int32), abstract.step.sharding)
        return TrainState(items["model"], items["optimizer"], step)


@contextmanager
def open_checkpoints(folder: Path, keep: int) -> Iterator[Checkpoints]:
    """The checkpoints below `folder`; on leaving, waits until the last one is written."""
    policy = ocp.training.preservation_policies.LatestN(keep)
    with ocp.training.Checkpointer(
        folder, preservation_policy=policy, cleanup_tmp_directories=True
    ) as checkpointer:
        yield Checkpoints(checkpointer)
