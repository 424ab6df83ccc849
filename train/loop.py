"""Training loop: optimizer steps, with periodic logging, evaluation and checkpoints."""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllm.distributed.agreement import check_agreement
from jaxllm.distributed.failing import failing_together
from jaxllm.errors import UserError
from jaxllm.models import Model
from jaxllm.params import count_parameters, dim_letters, named_parameters, split
from jaxllm.sharding import unsharded_dims

from .checkpoint import Checkpoints, open_checkpoints
from .config import ConfigError, TrainConfig, to_dict
from .data import MixtureConfig, PreferencesConfig
from .data.batches import Batches
from .data.placement import on_mesh
from .data.tasks import TaskConfig
from .exporting.exporter import Exporter, WriteExport, open_exporter
from .monitoring.run_logger import RunLogger
from .preference.dpo import find_objective
from .preference.reference import work_per_row
from .restarts.folder_lock import locked, run_folder
from .restarts.sound_step import find_steps, load_chosen, load_newest
from .restarts.stopping import ShouldStop, interruption, naming_the_run, stopping_on_sigterm
from .setup import Run, begin_run, keep_origin, make_run_mesh, resume_run
from .speed.device_peaks import peak_flops
from .speed.model_flops import flops_per_example
from .speed.profile import Profile
from .speed.stopwatch import Rate
from .step import Steps, TrainState

log = logging.getLogger("jaxllm")


class HeldOut(NamedTuple):
    """The mean loss over the held-out targets; None without any."""

    loss: float | None = None
    by_source: Mapping[str, float] = MappingProxyType({})  # of each source of a mixture


class TrainResult(NamedTuple):
    """The trained model and its last evaluation; logs and checkpoints are in the run's folder."""

    model: Model
    held_out_loss: float | None  # mean over held-out targets; None if nothing was held out
    unit: str  # the unit of the loss, such as "nats per token"
    step: int  # steps taken; fewer than the config's if SIGTERM stopped the run


def train(
    config: TrainConfig,
    model: Model | None = None,
    *,
    resume: bool = False,
    resume_from: int | None = None,
    export: WriteExport | None = None,
) -> TrainResult:
    """Trains a model as `config` says, from scratch, from given weights or from a checkpoint.

    SIGTERM stops it after the step that runs, with a checkpoint.

    Args:
        config: the run. `config.output` receives config.yaml, metrics.jsonl, loss.png and
            checkpoints/.
        model: the weights that `config.init_from` names, float32; consumed. Not used where a
            checkpoint is resumed, unless it is an adapter: the frozen base is not part of it.
        resume: continue the run in `config.output` from its newest sound checkpoint; without one,
            begin it. Damaged checkpoints are moved to aside/.
        resume_from: continue from the checkpoint of this step; newer ones are moved to aside/.
        export: what `config.export.every` needs: `jaxllm.interop.export_step`.

    Returns:
        The trained model and its held-out loss.

    Raises:
        ConfigError: the output folder holds another run or is in use by one, or a run whose
            numbers this config would change; or it does not fit the devices, model or data.
        CheckpointError: no checkpoint is sound, or this version of jaxllm cannot read them.
        NonFiniteError: a metric of a step is not finite; that step is not saved.
        UserError: the processes of a multi-host run differ in config, data or versions; or a file
            cannot be written, such as on a full disk.
        Interrupted: Ctrl-C, a KeyboardInterrupt.
    """
    mesh = make_run_mesh(config)
    folder = run_folder(config.output)
    chosen = {"resume": resume, "resume_from": resume_from}
    check_agreement({"config": to_dict(config), "options": chosen})
    with ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        check_lock = stack.enter_context(locked(folder))
        exporter = stack.enter_context(open_exporter(config, folder, export))
        log.info("loading the data and the %s", "checkpoint" if resume else "model")
        with naming_the_run(config):
            run = _prepare(config, model, mesh, resume, resume_from)
            keep_origin(run.model, folder, config.data)
        start = int(run.state.step)
        checkpoints = stack.enter_context(
            open_checkpoints(folder / "checkpoints", config.keep, exporter.pinned)
        )
        stack.enter_context(failing_together())
        should_stop = stack.enter_context(stopping_on_sigterm())
        _announce(config, run.model, mesh, run.batches, start)
        unit, rate = find_objective(run.model, config.data).unit, _rate(config, run.model, mesh)
        logger = stack.enter_context(RunLogger(config, folder, start or None, unit, rate))
        profile = stack.enter_context(Profile(config.speed.profiled, logger.folder / "profile"))
        return _train_steps(
            config, run, mesh, checkpoints, exporter, logger, profile, should_stop, check_lock
        )


def _rate(config: TrainConfig, model: Model, mesh: Mesh) -> Rate:
    """Returns the sizes of a step that convert steps per second into tokens per second and MFU."""
    with_image = isinstance(config.data, TaskConfig)  # text has none
    flops = flops_per_example(model, config.seq_len, with_image=with_image)
    peak = peak_flops(mesh.devices.flat[0], config.speed.peak_tflops)
    sequences, passes = work_per_row(config)
    tokens = sequences * config.batch_size * config.seq_len
    return Rate(tokens, passes * config.batch_size * flops, mesh.size, peak)


def _prepare(
    config: TrainConfig, model: Model | None, mesh: Mesh, resume: bool, resume_from: int | None
) -> Run:
    """Begins the run, or loads the checkpoint to continue from."""
    folder = run_folder(config.output)
    load = partial(resume_run, config, mesh, base=model)
    if resume_from is not None:
        return load_chosen(folder, resume_from, load)
    if saved := find_steps(folder):
        if resume:
            return load_newest(folder, load)
        raise ConfigError(
            f"{config.output} already holds a run of {max(saved)} steps; use --resume to "
            "continue it, or another --output to start a new run"
        )
    if resume:
        log.info("no checkpoint yet in %s  starting from step 0", config.output)
    return begin_run(config, model, mesh)


def _train_steps(
    config: TrainConfig,
    run: Run,
    mesh: Mesh,
    checkpoints: Checkpoints,
    exporter: Exporter,
    logger: RunLogger,
    profile: Profile,
    should_stop: ShouldStop,
    check_lock: Callable[[], None],
) -> TrainResult:
    """Takes the steps that are left, or those until the run is asked to stop."""
    model, batches, steps, state, base = run
    step, stopped, held_out = int(state.step), False, HeldOut()
    first = step
    if step in (0, config.steps):
        held_out = _evaluate(steps, state, batches, mesh, config)
    if step == 0:
        logger.held_out(0, *held_out)
    exporter.catch_up(step)
    data = batches.train(step)
    try:
        while step < config.steps and not stopped:
            with logger.waiting_for_data():
                batch = on_mesh(next(data), mesh, config.batch_size)
            with logger.compiling() if step == first else nullcontext(), profile.step(step + 1):
                state, metrics = steps.train(state, batch)
            check_lock()
            exporter.check()
            step += 1
            profile.finish(step, metrics)
            logger.add(step, metrics)
            stopped, is_last = should_stop(step), step == config.steps
            if step % config.eval_every == 0 or is_last:
                with logger.paused("evaluation"):
                    held_out = _evaluate(steps, state, batches, mesh, config)
                logger.held_out(step, *held_out)
            is_export = exporter.is_due(step)
            if step % config.save_every == 0 or is_last or stopped or is_export:
                with logger.paused("checkpoint"):
                    logger.copy()  # what a checkpoint continues is kept with it
                    checkpoints.save(state, config, model, batches.fingerprint(), base)
                    if is_export:
                        exporter.begin(step)
        checkpoints.wait()
        if not stopped:  # what is left of an export is made when the run goes on
            exporter.finish()
    except KeyboardInterrupt:
        with suppress(UserError):
            checkpoints.wait()
        raise interruption(config, step) from None
    bind, _ = split(model)
    unit = find_objective(model, config.data).unit
    return TrainResult(bind(state.evaluated), held_out.loss, unit, step)


def _evaluate(
    steps: Steps, state: TrainState, batches: Batches, mesh: Mesh, config: TrainConfig
) -> HeldOut:
    """Returns the mean loss over the held-out targets, and over those of each source."""
    total = targets = np.zeros((), np.float64)
    for rows in batches.held_out(config.eval_batches):
        batch = on_mesh(rows, mesh, config.batch_size)
        if isinstance(config.data, PreferencesConfig):
            batch["reference"] = steps.refer(state, batch)
        loss, number = steps.evaluate(state.evaluated, batch)
        total, targets = total + np.asarray(loss), targets + np.asarray(number)
    if not targets.sum():
        return HeldOut()
    by_source = {}
    if isinstance(config.data, MixtureConfig):
        losses = zip(config.data.mixture, total, targets, strict=True)
        by_source = {name: float(loss / number) for name, loss, number in losses if number}
    return HeldOut(float(total.sum() / targets.sum()), by_source)


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
        if config.speed.profiled and config.speed.profiled[0] <= start:
            log.info("profile %s  without the steps up to %d", config.speed.profile, start)
    for name, variable in named_parameters(model).items():
        whole = unsharded_dims(dim_letters(variable), variable.get_value().shape, mesh.shape)
        for axis, letter, size in whole:
            log.info("not sharded %s  %s=%d is not divisible by %s", name, letter, size, axis)
