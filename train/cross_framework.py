"""Moves a training run between frameworks: resumes one from PyTorch, exports optimizer state."""

import math
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxllm.checkpointing.orbax_layout import read_step
from jaxllm.models import Model
from jaxllm.optimizer_state import AdamWState
from jaxllm.params import map_parameters, named_parameters, read_model, split
from jaxllm.storage.paths import check_output

from .checkpoint import open_checkpoints
from .checkpoint_arrays import FIRST_MOMENT, SECOND_MOMENT, open_arrays
from .config import ConfigError, TrainConfig, from_stored, save_config
from .finetuning.start import init_state, model_to_train
from .optimizers.config import BadStepsConfig
from .optimizers.optimizer import is_decayed
from .optimizers.schedule import make_schedule
from .setup import keep_origin, make_batches, make_run_mesh
from .step import make_steps


def write_run(config: TrainConfig, model: Model, state: AdamWState) -> None:
    """Writes a run folder that `--resume` continues from step `state.step`.

    Args:
        config: the run; `config.output` must not exist or be an empty folder.
        model: the weights at that step, in float32; consumed.
        state: the AdamW moments, on device or on the host, and the hyperparameters that produced
            them, which must match `config`.

    Raises:
        ConfigError: lists every mismatch between `config` and `state`; or `config.output` is not
            empty, or `config` does not fit the model, the data or the devices. Then no run folder
            is written.
    """
    if problems := list(_state_mismatches(config, state)):
        raise ConfigError("\n".join(problems))
    mesh = make_run_mesh(config)
    folder = check_output(config.output).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{config.output} exists and is not an empty folder; choose a new one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as unfinished:
        run = Path(unfinished) / "run"
        keep_origin(model, run)
        _save(config, model, state, mesh, run)
        save_config(config, run / "config.yaml")
        run.replace(folder)


def _save(config: TrainConfig, model: Model, state: AdamWState, mesh: Mesh, run: Path) -> None:
    """Writes the run's only checkpoint."""
    with jax.set_mesh(mesh), open_checkpoints(run / "checkpoints", config.keep) as checkpoints:
        model = model_to_train(config, model)
        batches = make_batches(config, model, mesh)
        steps = make_steps(config, model, mesh)
        fresh = init_state(steps, split(model)[1])
        shardings = jax.tree.map(lambda x: x.sharding, steps.abstract_state.params)
        moments = {
            "mu": jax.device_put(map_parameters(model, lambda name, _: state.mu[name]), shardings),
            "nu": jax.device_put(map_parameters(model, lambda name, _: state.nu[name]), shardings),
        }
        step = jnp.asarray(state.step, jnp.int32)
        optimizer = optax.tree.set(fresh.optimizer, count=step, **moments)
        resumed = fresh._replace(optimizer=optimizer, step=step)
        checkpoints.save(resumed, config, model, batches.fingerprint())


def _state_mismatches(config: TrainConfig, state: AdamWState) -> Iterator[str]:
    """Yields every way the config disagrees with the run that the state came from."""
    yield from _unlike_adamw(config)
    settings = config.optimizer
    for name in ("b1", "b2", "eps"):
        if not _same_float32(getattr(settings, name), getattr(state, name)):
            yield (
                f"optimizer.{name} is {getattr(settings, name)} in the config and "
                f"{getattr(state, name)} in the optimizer state"
            )
    for name, decay in state.weight_decay.items():
        configured = settings.weight_decay if is_decayed(settings, name) else 0.0
        if not _same_float32(configured, decay):
            yield (
                f"the weight decay of {name} is {configured} in the config and {decay} in the "
                "optimizer state"
            )
    if state.step >= config.steps:
        yield (
            f"steps={config.steps} in the config, but the optimizer state has already taken "
            f"{state.step} steps"
        )
        return
    schedule = make_schedule(settings, config.steps)
    # PyTorch's files do not say whether the scheduler stepped before the optimizer was saved.
    rates = [float(schedule(step)) for step in (state.step - 1, state.step)]
    if not any(_same_float32(rate, state.learning_rate) for rate in rates):
        yield (
            f"the learning rate is {state.learning_rate:.6g} in the optimizer state, but the "
            f"config's schedule gives {rates[0]:.6g} at step {state.step - 1} and {rates[1]:.6g} "
            "at the next"
        )


def _unlike_adamw(config: TrainConfig) -> Iterator[str]:
    """Yields each setting whose optimizer state does not move between frameworks."""
    settings = config.optimizer
    for name, moves in _MOVES.items():
        if (given := getattr(settings, name)) != moves:
            shown = "{...}" if name == "lora" else repr(given)
            yield f"optimizer.{name}={shown}: only the state of plain AdamW moves to PyTorch"


# The settings whose state moves between frameworks.
_MOVES: dict[str, Any] = {"name": "adamw", "lora": None, "precision": "float32", "ema": None}
_MOVES |= {"bad_steps": BadStepsConfig(), "groups": ()}


def _same_float32(a: float, b: float) -> bool:
    """Whether two numbers agree up to float32 rounding."""
    return math.isclose(a, b, rel_tol=1e-6)


def read_state(step: Path) -> AdamWState:
    """Opens the AdamW state in a run's step folder; moments are read only when used.

    Args:
        step: the folder of one checkpoint, as in `runs/tiny/checkpoints/1000`.

    Raises:
        ConfigError: the checkpoint holds only a model, without optimizer state.
        CheckpointError: this version of jaxllm cannot read the checkpoint.
    """
    folder = step.resolve()
    described = read_step(folder).about
    if "run" not in described:
        raise ConfigError(
            f"{step} holds a model without optimizer state: it was not written by a training run"
        )
    config, taken = from_stored(described["run"], str(step)), int(folder.name)
    if problems := list(_unlike_adamw(config)):
        raise ConfigError("\n".join(f"{step}: {problem}" for problem in problems))
    names = named_parameters(read_model(folder)[0])
    stored = open_arrays(folder, "optimizer")
    settings = config.optimizer
    return AdamWState(
        step=taken,
        mu={name: stored[FIRST_MOMENT, name] for name in names},
        nu={name: stored[SECOND_MOMENT, name] for name in names},
        learning_rate=float(make_schedule(settings, config.steps)(taken)),
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.eps,
        weight_decay={
            name: settings.weight_decay if is_decayed(settings, name) else 0.0 for name in names
        },
    )
