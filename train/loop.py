"""Training loop: optimizer steps, with periodic logging, evaluation and checkpoints."""

import dataclasses
import logging
import math
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxllm.config import with_fields
from jaxllm.errors import NonFiniteError, UserError
from jaxllm.models import Model, build_abstract
from jaxllm.params import (
    count_parameters,
    describe,
    dim_letters,
    from_description,
    initialize,
    named_parameters,
    split,
)
from jaxllm.sharding import unsharded_dims

from .checkpoint import Checkpoints, open_checkpoints
from .config import ConfigError, TrainConfig, find_changes, save_config
from .data.batches import Batches
from .data.placement import on_mesh, share_of
from .mesh import make_mesh
from .metrics import MetricLog, Progress, read_metrics
from .objective import get_objective
from .plot import plot_losses
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
        if resume:
            _check_unchanged(config, checkpoints, batches)
        elif config.model is not None:
            model = initialize(model.config, mesh, config.seed)
        steps = make_steps(config, model, mesh)
        bind, params = split(model)
        state = checkpoints.load(steps.abstract_state) if resume else init_state(steps, params)
        start = int(state.step)
        _announce(config, model, mesh, batches, start)
        unit = get_objective(model).unit
        report = stack.enter_context(Report(config, folder, start if resume else None, unit))
        held_out_loss = None
        if start in (0, config.steps):
            held_out_loss = _evaluate(steps, state, batches, mesh, config)
        if start == 0:
            report.held_out(0, held_out_loss)
        data = batches.train(start)
        for step in range(start + 1, config.steps + 1):
            state, metrics = steps.train(state, on_mesh(next(data), mesh, config.batch_size))
            report.add(step, metrics)
            is_last = step == config.steps
            if step % config.eval_every == 0 or is_last:
                held_out_loss = _evaluate(steps, state, batches, mesh, config)
                report.held_out(step, held_out_loss)
            if step % config.save_every == 0 or is_last:
                report.flush()
                checkpoints.save(state, config, model, batches.fingerprint())
    return TrainResult(bind(state.params), held_out_loss, unit)


class Report:
    """Writes a run's metrics to its log and progress line, and its loss plot on exit.

    Only process 0 writes. A step's metrics are fetched after the next step has been dispatched, so
    that no device waits.
    """

    def __init__(self, config: TrainConfig, folder: Path, resume_at: int | None, unit: str):
        self._pending: tuple[int, dict[str, Array]] | None = None
        self._stack = ExitStack()
        self._log: MetricLog | None = None
        self._folder, self._unit = folder, unit
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            save_config(config, folder / "config.yaml")
            self._log = self._stack.enter_context(
                MetricLog(
                    folder,
                    resume_at=resume_at,
                    tensorboard=_wants_tensorboard(config),
                    wandb=config.wandb,
                )
            )
            tokens = config.batch_size * config.seq_len
            progress = Progress(
                config.steps,
                start=resume_at or 0,
                tokens_per_step=tokens,
                log_every=config.log_every,
            )
            self._progress = self._stack.enter_context(progress)

    def add(self, step: int, metrics: dict[str, Array]) -> None:
        """Queues a step's metrics and writes those of the previous step."""
        self.flush()
        self._pending = step, metrics

    def held_out(self, step: int, loss: float | None) -> None:
        """Writes the held-out loss, after the metrics of its step; None is not written."""
        self.flush()
        if self._log is not None and loss is not None:
            self._log.write(step, {"held_out_loss": loss})

    def flush(self) -> None:
        """Writes the queued metrics. Raises NonFiniteError if one of them is not finite."""
        if self._pending is None:
            return
        step, pending = self._pending
        self._pending = None
        metrics = {name: float(value) for name, value in pending.items()}
        if self._log is not None:
            self._log.write(step, metrics)
            self._progress.update(step, metrics["loss"])
        if not all(map(math.isfinite, metrics.values())):
            raise NonFiniteError(f"step {step} has non-finite metrics and is not saved: {metrics}")

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        if self._log is not None and any("loss" in row for row in read_metrics(self._log.path)):
            plot_losses(self._log.path, self._folder / "loss.png", self._unit)


def _wants_tensorboard(config: TrainConfig) -> bool:
    if config.tensorboard is None:
        return find_spec("tensorboardX") is not None
    return config.tensorboard


def make_run_mesh(config: TrainConfig) -> Mesh:
    """Creates the mesh of a run. Raises ConfigError if the config does not fit the devices."""
    try:
        mesh = make_mesh(**dataclasses.asdict(config.mesh))
    except UserError as error:
        raise ConfigError(str(error)) from error
    rows, ways = config.batch_size // config.accumulate, mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % ways:
        raise ConfigError(
            f"batch_size / accumulate = {rows} sequences is not divisible by "
            f"data x fsdp = {ways} devices"
        )
    return mesh


def make_batches(config: TrainConfig, model: Model, mesh: Mesh) -> Batches:
    """Loads the data as batches. Raises ConfigError if they do not fit the config or the model."""
    try:
        return Batches(
            config.data.load(model, config.seq_len),
            batch_size=config.batch_size,
            seed=config.data.seed,
            **share_of(mesh),
        )
    except (UserError, OSError) as error:
        raise ConfigError(str(error)) from error


def model_to_train(
    config: TrainConfig, model: Model | None, checkpoints: Checkpoints, *, resume: bool
) -> Model:
    """Returns the model to train: abstract (shapes only) unless weights are given.

    Raises ConfigError if the output folder has nothing to resume or a run that would be
    overwritten, or if `model` is missing, unexpected or not float32.
    """
    overrides: dict[str, Any] = {"numerics.dtype": config.dtype, "remat": config.remat}
    given = {name: value for name, value in overrides.items() if value is not None}
    if resume:
        if checkpoints.latest is None:
            raise ConfigError(f"{config.output} holds no checkpoint to resume from")
        return checkpoints.read_model()
    if checkpoints.latest is not None:
        raise ConfigError(
            f"{config.output} already holds a run of {checkpoints.latest} steps; use --resume to "
            "continue it, or another --output to start a new run"
        )
    if config.model is not None and model is not None:
        raise ConfigError("both weights and a new model are given; set init_from, not model")
    if config.model is not None:
        model = build_abstract(with_fields(config.model, given))
    elif model is not None:
        bind, _ = split(from_description(describe(model), given))
        model = bind(split(model)[1])
    else:
        raise ConfigError(
            f"init_from={config.init_from!r} names a checkpoint, but no model was given; load it "
            "with load_pretrained and give it as `model`"
        )
    _check_float32(model)
    return model


def _check_unchanged(config: TrainConfig, checkpoints: Checkpoints, batches: Batches) -> None:
    """Raises ConfigError for every change that would alter the numbers of a resumed run."""
    metadata = checkpoints.read_metadata()
    problems = find_changes(metadata["run"], config)
    if metadata["data"] != batches.fingerprint():
        problems.append("the data differ from those that the run was trained on")
    if problems:
        raise ConfigError(
            "\n".join(f"cannot resume {config.output}: {problem}" for problem in problems)
        )


def _check_float32(model: Model) -> None:
    """Raises ConfigError unless every parameter is float32: coarser dtypes lose small updates."""
    other_dtypes = {
        variable.get_value().dtype.name
        for variable in named_parameters(model).values()
        if variable.get_value().dtype != np.float32
    }
    if other_dtypes:
        raise ConfigError(
            f"the parameters are {', '.join(other_dtypes)}, which loses small updates; load them "
            "with dtype='float32'. For lower-precision activations set dtype in the run's config"
        )


def init_state(steps: Steps, params: dict) -> TrainState:
    """Returns the state before the first step, sharded over the mesh."""
    shardings = jax.tree.map(lambda x: x.sharding, steps.abstract_state.params)
    return steps.init(jax.device_put(params, shardings))


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
    """Logs the run's size, and every parameter dimension that the mesh cannot shard evenly."""
    shape = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    epoch = batches.examples_per_epoch
    epochs = config.steps * config.batch_size / epoch
    log.info("%s parameters on %s", f"{count_parameters(model):,}", shape)
    log.info(
        "%s training examples of %d tokens; %d steps are %.2f epochs",
        *(f"{epoch:,}", config.seq_len, config.steps, epochs),
    )
    if start:
        log.info("resumed after step %d%s", start, "" if start < config.steps else ", the last")
    for name, variable in named_parameters(model).items():
        whole = unsharded_dims(dim_letters(variable), variable.get_value().shape, mesh.shape)
        for axis, letter, size in whole:
            log.info("%s: %s=%d is not divisible by %s, so not sharded", name, letter, size, axis)
