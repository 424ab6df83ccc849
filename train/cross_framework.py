"""A run that changes frameworks: begun here from where another framework is, and the way there."""

import math
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxllm.models import Model
from jaxllm.optimizer_state import AdamWState
from jaxllm.params import from_description, map_parameters, named_parameters, split

from .checkpoint import open_checkpoints
from .checkpoint_arrays import FIRST_MOMENT, SECOND_MOMENT, open_arrays, read_metadata
from .config import ConfigError, TrainConfig, from_stored, save_config
from .loop import init_state, make_batches, make_run_mesh, model_to_train
from .optimizers.adamw import is_decayed, make_schedule
from .step import make_steps


def write_run(config: TrainConfig, model: Model, state: AdamWState) -> None:
    """Writes a run that has taken `state.step` steps elsewhere, for `--resume` to go on with.

    Args:
        config: the run, of which `config.output` is a folder that holds none yet.
        model: its weights, in float32; consumed.
        state: the moments, on the devices or on the host; and what AdamW was told, which must be
            what the config says.

    Raises ConfigError, before anything is written, with everything in which they differ.
    """
    if problems := list(_differences(config, state)):
        raise ConfigError("\n".join(problems))
    mesh = make_run_mesh(config)
    folder = Path(config.output).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{config.output} exists and is not an empty folder; choose a new one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as unfinished:
        run = Path(unfinished) / "run"
        _save(config, model, state, mesh, run)
        save_config(config, run / "config.yaml")
        run.replace(folder)


def _save(config: TrainConfig, model: Model, state: AdamWState, mesh: Mesh, run: Path) -> None:
    """The run's only checkpoint."""
    with jax.set_mesh(mesh), open_checkpoints(run / "checkpoints", config.keep) as checkpoints:
        model = model_to_train(config, model, checkpoints, resume=False)
        batches = make_batches(config, model, mesh)
        steps = make_steps(config, model, mesh)
        taken = init_state(steps, split(model)[1])
        places = jax.tree.map(lambda x: x.sharding, steps.abstract_state.params)
        moments = {
            "mu": jax.device_put(map_parameters(model, lambda name, _: state.mu[name]), places),
            "nu": jax.device_put(map_parameters(model, lambda name, _: state.nu[name]), places),
        }
        step = jnp.asarray(state.step, jnp.int32)
        optimizer = optax.tree.set(taken.optimizer, count=step, **moments)
        taken = taken._replace(optimizer=optimizer, step=step)
        checkpoints.save(taken, config, model, batches.fingerprint())


def _differences(config: TrainConfig, state: AdamWState) -> Iterator[str]:
    """In what the config is not the run that the state is of."""
    told = config.optimizer
    for name in ("b1", "b2", "eps"):
        if not _same(getattr(told, name), getattr(state, name)):
            yield (
                f"optimizer.{name}={getattr(told, name)} in the config, "
                f"{getattr(state, name)} in the optimizer's state"
            )
    for name, decay in state.weight_decay.items():
        own = told.weight_decay if is_decayed(told, name) else 0.0
        if not _same(own, decay):
            yield f"{name} decays by {own} in the config, by {decay} in the optimizer's state"
    if state.step >= config.steps:
        yield f"steps={config.steps} in the config, {state.step} are taken already"
        return
    schedule = make_schedule(told, config.steps)
    # Whether PyTorch's scheduler was ahead when its optimizer was saved, its files do not say.
    rates = [float(schedule(step)) for step in (state.step - 1, state.step)]
    if not any(_same(rate, state.learning_rate) for rate in rates):
        yield (
            f"the learning rate is {state.learning_rate:.6g} in the optimizer's state; the "
            f"config's schedule gives {rates[0]:.6g} at step {state.step - 1}, and {rates[1]:.6g} "
            "at the next"
        )


def _same(a: float, b: float) -> bool:
    """Whether two numbers are the same but for being rounded to float32."""
    return math.isclose(a, b, rel_tol=1e-6)


def read_state(step: Path) -> AdamWState:
    """The state of the optimizer in the folder of a run's step; no moment is read yet.

    Raises ConfigError if it is that of a model which was not trained here.
    """
    folder = step.resolve()
    described = read_metadata(folder)
    if "run" not in described:
        raise ConfigError(f"{step} is a model that was not trained here: it has no optimizer")
    config, taken = from_stored(described["run"], str(step)), int(folder.name)
    names = named_parameters(from_description(described))
    stored = open_arrays(folder, "optimizer")
    told = config.optimizer
    return AdamWState(
        step=taken,
        mu={name: stored[FIRST_MOMENT, name] for name in names},
        nu={name: stored[SECOND_MOMENT, name] for name in names},
        learning_rate=float(make_schedule(told, config.steps)(taken)),
        b1=told.b1,
        b2=told.b2,
        eps=told.eps,
        weight_decay={name: told.weight_decay if is_decayed(told, name) else 0.0 for name in names},
    )
