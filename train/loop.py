"""The training loop: take a batch, take a step; now and then log, evaluate, save."""

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
    """What a run leaves in memory; the rest is in its folder."""

    model: Model
    held_out_loss: float | None  # None if nothing was held out
    unit: str  # of that loss, for each target


def train(config: TrainConfig, model: Model | None = None, *, resume: bool = False) -> TrainResult:
    """Runs `config` from its first step, or from its newest checkpoint, to its last.

    Args:
        config: the run. `config.output` receives config.yaml, metrics.jsonl, loss.png and
            checkpoints/.
        model: the weights that `config.init_from` names, float32; consumed.
        resume: continue the run in `config.output`.

    Raises:
        ConfigError: the folder holds another run, or nothing to resume, or a run whose numbers
            this config would change; or the config does not fit the devices or the data.
        NonFiniteError: the loss is not finite. Nothing of that step is saved.
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
    """The numbers of a run on their way to its log and its progress line.

    A step's metrics are fetched when the next step is under way, so that no device waits for it.
    """

    def __init__(self, config: TrainConfig, folder: Path, resume_at: int | None, unit: str):
        self._waiting: tuple[int, dict[str, Array]] | None = None
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
        """Takes a step's metrics and lets go of the step's before."""
        self.flush()
        self._waiting = step, metrics

    def held_out(self, step: int, loss: float | None) -> None:
        """Writes the held-out loss behind the metrics of its step."""
        self.flush()
        if self._log is not None and loss is not None:
            self._log.write(step, {"held_out_loss": loss})

    def flush(self) -> None:
        """Writes what is waiting. Raises NonFiniteError if its loss is not finite."""
        if self._waiting is None:
            return
        step, waiting = self._waiting
        self._waiting = None
        metrics = {name: float(value) for name, value in waiting.items()}
        if self._log is not None:
            self._log.write(step, metrics)
            self._progress.update(step, metrics["loss"])
        if not all(map(math.isfinite, metrics.values())):
            raise NonFiniteError(f"step {step}: {metrics}; the run stops, and saves nothing")

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
    """The mesh. Raises ConfigError if the config does not fit the devices."""
    try:
        mesh = make_mesh(**dataclasses.asdict(config.mesh))
    except UserError as error:
        raise ConfigError(str(error)) from error
    rows, ways = config.batch_size // config.accumulate, mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % ways:
        raise ConfigError(
            f"batch_size / accumulate = {rows} sequences do not divide among "
            f"data x fsdp = {ways} devices"
        )
    return mesh


def make_batches(config: TrainConfig, model: Model, mesh: Mesh) -> Batches:
    """The data. Raises ConfigError if they do not fit the config or the model."""
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
    """The model to train; abstract unless it is given."""
    overrides: dict[str, Any] = {"numerics.dtype": config.dtype, "remat": config.remat}
    given = {name: value for name, value in overrides.items() if value is not None}
    if resume:
        if checkpoints.latest is None:
            raise ConfigError(f"{config.output} holds no checkpoint to resume from")
        return from_description(checkpoints.read_metadata())
    if checkpoints.latest is not None:
        raise ConfigError(
            f"{config.output} holds a run of {checkpoints.latest} steps: --resume continues it, "
            "another --output leaves it alone"
        )
    if config.model is not None and model is not None:
        raise ConfigError("the config describes a new model, but one is given: use init_from")
    if config.model is not None:
        model = build_abstract(with_fields(config.model, given))
    elif model is not None:
        bind, _ = split(from_description(describe(model), given))
        model = bind(split(model)[1])
    else:
        raise ConfigError(
            "init_from names a checkpoint: give its model, as load_pretrained reads it"
        )
    _check_fine(model)
    return model


def _check_unchanged(config: TrainConfig, checkpoints: Checkpoints, batches: Batches) -> None:
    """Raises ConfigError for what would change the numbers of the run that is resumed."""
    about = checkpoints.read_metadata()
    problems = find_changes(about["run"], config)
    if about["data"] != batches.fingerprint():
        problems.append("the data are not those that the run was trained on")
    if problems:
        raise ConfigError(
            "\n".join(f"cannot resume {config.output}: {problem}" for problem in problems)
        )


def _check_fine(model: Model) -> None:
    """Raises ConfigError if the parameters are too coarse to learn."""
    coarse = {
        variable.get_value().dtype.name
        for variable in named_parameters(model).values()
        if variable.get_value().dtype != np.float32
    }
    if coarse:
        raise ConfigError(
            f"the parameters are {', '.join(coarse)}, which loses small updates: load them with "
            "dtype='float32'; the activations may be coarser (dtype in the run's config)"
        )


def init_state(steps: Steps, params: dict) -> TrainState:
    """The first state, on the mesh."""
    places = jax.tree.map(lambda x: x.sharding, steps.abstract_state.params)
    return steps.init(jax.device_put(params, places))


def _evaluate(
    steps: Steps, state: TrainState, batches: Batches, mesh: Mesh, config: TrainConfig
) -> float | None:
    """The mean over the held-out targets; None if there are none."""
    total = targets = 0.0
    for batch in batches.held_out(config.eval_batches):
        loss, number = steps.evaluate(state.params, on_mesh(batch, mesh, config.batch_size))
        total, targets = total + float(loss), targets + float(number)
    return total / targets if targets else None


def _announce(config: TrainConfig, model: Model, mesh: Mesh, batches: Batches, start: int) -> None:
    """Says what is about to run, and which parameters the mesh does not split as it could."""
    shape = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    epoch = batches.examples_per_epoch
    epochs = config.steps * config.batch_size / epoch
    log.info("%s parameters on %s", f"{count_parameters(model):,}", shape)
    log.info(
        "%s examples of %d tokens to train on; %d steps are %.2f epochs",
        *(f"{epoch:,}", config.seq_len, config.steps, epochs),
    )
    if start:
        log.info("resumed after step %d", start)
    for name, variable in named_parameters(model).items():
        whole = unsharded_dims(dim_letters(variable), variable.get_value().shape, mesh.shape)
        for axis, letter, size in whole:
            log.info("%s: %s=%d is not split, %s does not divide it", name, letter, size, axis)
