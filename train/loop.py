"""Training loop: optimizer steps, with periodic logging, evaluation and checkpoints."""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from jaxllm.models import Model
from jaxllm.params import count_parameters, dim_letters, initialize, named_parameters, split
from jaxllm.sharding import unsharded_dims

from .checkpoint import open_checkpoints
from .config import ConfigError, TrainConfig
from .data.batches import Batches
from .data.placement import on_mesh
from .monitoring.run_logger import RunLogger
from .objective import get_objective
from .setup import (
    check_unchanged,
    init_state,
    keep_origin,
    make_batches,
    make_run_mesh,
    model_to_train,
)
from .step import Steps, TrainState, make_steps

log = logging.getLogger("jaxllm")


class TrainResult(NamedTuple):
    """The trained model and its last evaluation; logs and checkpoints are in the run's folder."""

    model: Model
    held_out_loss: float | None  # mean over held-out targets; None if nothing was held out
    unit: str  # the unit of the loss, such as "nats per token"


def train(config: TrainConfig, model: Model | None = None, *, resume: bool = False) -> TrainResult:
    """Trains a model as `config` says, from scratch, from given weights or from a checkpoint.

    Args:
        config: the run. `config.output` receives config.yaml, metrics.jsonl, loss.png and
            checkpoints/.
        model: the weights that `config.init_from` names, float32; consumed.
        resume: continue the run in `config.output` from its newest checkpoint.

    Returns:
        The trained model and its held-out loss.

    Raises:
        ConfigError: the output folder holds another run, or no run to resume, or a run whose
            numbers this config would change; or it does not fit the devices, model or data.
        CheckpointError: this version of jaxllm cannot read the checkpoint to resume.
        NonFiniteError: a metric of a step is not finite; that step is not saved.
    """
    mesh = make_run_mesh(config)
    folder = Path(config.output).resolve()
    if resume and not (folder / "checkpoints").is_dir():
        raise ConfigError(f"{config.output} holds no checkpoint to resume from")
    with ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        checkpoints = stack.enter_context(open_checkpoints(folder / "checkpoints", config.keep))
        model = model_to_train(config, model, checkpoints, resume=resume)
        batches = make_batches(config, model, mesh)
        keep_origin(model, folder)
        if resume:
            check_unchanged(config, checkpoints, batches)
        elif config.model is not None:
            model = initialize(model.config, mesh, config.seed)
        steps = make_steps(config, model, mesh)
        bind, params = split(model)
        state = checkpoints.load(steps.abstract_state) if resume else init_state(steps, params)
        start = int(state.step)
        _announce(config, model, mesh, batches, start)
        unit = get_objective(model).unit
        logger = stack.enter_context(RunLogger(config, folder, start if resume else None, unit))
        held_out_loss = None
        if start in (0, config.steps):
            held_out_loss = _evaluate(steps, state, batches, mesh, config)
        if start == 0:
            logger.held_out(0, held_out_loss)
        data = batches.train(start)
        for step in range(start + 1, config.steps + 1):
            state, metrics = steps.train(state, on_mesh(next(data), mesh, config.batch_size))
            logger.add(step, metrics)
            is_last = step == config.steps
            if step % config.eval_every == 0 or is_last:
                with logger.paused():
                    held_out_loss = _evaluate(steps, state, batches, mesh, config)
                logger.held_out(step, held_out_loss)
            if step % config.save_every == 0 or is_last:
                with logger.paused():
                    checkpoints.save(state, config, model, batches.fingerprint())
    return TrainResult(bind(state.params), held_out_loss, unit)


def _evaluate(
    steps: Steps, state: TrainState, batches: Batches, mesh: Mesh, config: TrainConfig
) -> float | None:
    """Returns the mean loss over the held-out targets, or None if there are none."""
    total = targets = 0.0
    for batch in batches.held_out(config.eval_batches):
        loss, number = steps.evaluate(state.params, on_mesh(batch, mesh, config.batch_size))
        total, targets = total + float(loss), targets + float(number)
    return total / targets if targets else None


def _announce(config: TrainConfig, model: Model, mesh: Mesh, batches: Batches, start: int) -> None:
    """Logs the run's size, and every parameter dimension that the mesh cannot shard evenly.

    Lines have the form of `Progress`: names and values, two spaces between the pairs.
    """
    shape = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    epoch = batches.examples_per_epoch
    epochs = config.steps * config.batch_size / epoch
    log.info("parameters %s  mesh %s", f"{count_parameters(model):,}", shape)
    log.info("examples %s  length %d  epochs %.2f", f"{epoch:,}", config.seq_len, epochs)
    if start:
        done = "" if start < config.steps else "  nothing left to train"
        log.info("step %d/%d  resumed%s", start, config.steps, done)
    for name, variable in named_parameters(model).items():
        whole = unsharded_dims(dim_letters(variable), variable.get_value().shape, mesh.shape)
        for axis, letter, size in whole:
            log.info("not sharded %s  %s=%d is not divisible by %s", name, letter, size, axis)
