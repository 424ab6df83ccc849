"""Setup of a run: its mesh, batches, model and initial state, each checked against the config."""

import dataclasses
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxllm.checkpoint_origin import KEPT, copy_files, copy_tokenizer
from jaxllm.checkpointing.orbax_layout import ADAPTER, REFERENCE, read_step
from jaxllm.config import stacks_of
from jaxllm.distributed.agreement import check_agreement
from jaxllm.distributed.devices import check_float8, device_of_kind
from jaxllm.distributed.gather import gather_texts
from jaxllm.errors import CheckpointError, UserError
from jaxllm.hub import local_path
from jaxllm.lora.given import given_factors
from jaxllm.lora.parts import join
from jaxllm.models import Model
from jaxllm.models.stack import check_positions
from jaxllm.params import describe, from_description, read_model
from jaxllm.storage.mirror import copy_folder
from jaxllm.storage.paths import is_remote
from jaxllm.tokenization import ByteTokenizer, check_tokens, find_tokenizer
from jaxllm.tokenization.finding import BYTES

from .checkpoint import load_state
from .config import ConfigError, TrainConfig, from_stored, load_stored
from .data import Data, PreferencesConfig, Tokenized
from .data.batches import Batches, check_batch_size, check_epochs
from .data.placement import on_mesh, own_rows
from .finetuning.base import check_base, describe_base
from .finetuning.start import init_state, model_to_train, starting_weights
from .mesh import make_mesh
from .optimizers.schedule import make_schedule
from .preference import stored
from .preference.reference import needs_start
from .restarts.changes import find_changes
from .restarts.extension import describe_extension
from .restarts.folder_lock import run_folder
from .step import Steps, TrainState, make_steps

log = logging.getLogger("jaxllm")


def make_run_mesh(config: TrainConfig) -> Mesh:
    """Creates the mesh of a run. Raises ConfigError if the config does not fit the devices."""
    try:
        mesh = make_mesh(**config.mesh.sizes)
    except UserError as error:
        raise ConfigError(str(error)) from error
    check_rows(config, mesh.shape)
    if config.dtype == "float8":
        check_float8(device_of_kind(mesh.devices.flat[0].device_kind))
    return mesh


def check_rows(
    config: TrainConfig, mesh_shape: Mapping[str, int], accumulate: int | None = None
) -> None:
    """Raises ConfigError if the sequences of a microbatch cannot be divided among the devices.

    Mesh axes that are left out are 1, and `accumulate` is by default that of the run.
    """
    rows = config.batch_size // (accumulate or config.accumulate)
    ways = mesh_shape.get("data", 1) * mesh_shape.get("fsdp", 1)
    if rows % ways:
        raise ConfigError(
            f"batch_size / accumulate = {rows} sequences is not divisible by "
            f"data x fsdp = {ways} devices"
        )


def make_batches(config: TrainConfig, model: Model, mesh: Mesh) -> Batches:
    """Loads the data as batches. Raises ConfigError if they do not fit the config or the model."""
    try:
        for stack in stacks_of(model.config):
            check_positions(config.seq_len, stack)
        examples = with_tokenizer(config, model).load(model, config.seq_len)
        check_batch_size(examples, config.batch_size)  # before each row has a number
        check_epochs(examples, config.steps, config.batch_size, config.data)
        return Batches(
            examples,
            batch_size=config.batch_size,
            seed=config.data.seed,
            rows=own_rows(mesh, config.batch_size),
        )
    except (UserError, OSError) as error:
        raise ConfigError(str(error)) from error


def with_tokenizer(config: TrainConfig, model: Model) -> Data:
    """Returns the data of a run with its tokenizer: by default the one that its model came with.

    A model comes with the tokenizer of the run or checkpoint that `init_from` names, or else of
    the checkpoint that it was first loaded from. A run keeps a copy of its tokenizer, which is used
    where the original is no longer there.

    Raises:
        UserError: the model came with none, and its vocabulary is not that of bytes.
    """
    data = config.data
    if not isinstance(data, Tokenized):
        return data
    if data.tokenizer is not None or config.init_from is None:
        return _with_kept_tokenizer(data, config, model)
    start = local_path(config.init_from)
    if (start / "config.yaml").is_file():
        earlier = load_stored(start / "config.yaml")
        own = with_tokenizer(earlier, model)
        if isinstance(own, Tokenized) and own.tokenizer is not None:
            return dataclasses.replace(data, tokenizer=own.tokenizer, eos=data.eos or own.eos)
        if earlier.model is not None:
            return dataclasses.replace(data, tokenizer=BYTES)
    found = find_tokenizer([start, *_origin_folders(config, model)])
    if found is not None:
        return dataclasses.replace(data, tokenizer=str(found))
    if isinstance(model, data.trains):  # otherwise loading the data says so
        check_tokens(ByteTokenizer(), model.config, is_chosen=False, option="data.tokenizer")
    return data


def _with_kept_tokenizer(data: Tokenized, config: TrainConfig, model: Model) -> Tokenized:
    """Returns the data with the run's copy of a tokenizer: that of a new model, or of its weights.

    A run that was moved to another machine has that copy only.
    """
    if data.tokenizer in (None, BYTES) or (named := Path(data.tokenizer)).exists():
        return data
    origin = "" if model.origin is None else model.origin.checkpoint
    starts = {Path(start) for start in (config.init_from, origin) if start}
    if config.model is None and not starts & {named, named.parent}:
        return data
    kept = [folder for folder in _origin_folders(config, model) if folder.name == KEPT]
    found = find_tokenizer(kept)
    return data if found is None else dataclasses.replace(data, tokenizer=str(found))


def _origin_folders(config: TrainConfig, model: Model) -> list[Path]:
    """Returns the folder that the model came from, and the copy of its files in the run."""
    folders = [] if model.origin is None else model.origin.folders
    return [*folders, Path(config.output) / KEPT]


def keep_origin(model: Model, run: Any, data: Data | None = None) -> None:
    """Copies the tokenizer and other files of the model's origin into the run, which exports them.

    Process 0 does, unless the run has them already. Of a new model, it is the tokenizer of `data`.
    """
    kept, named = run / KEPT, None
    if isinstance(data, Tokenized) and data.tokenizer != BYTES:
        named = data.tokenizer
    is_none = model.origin is None and named is None
    if jax.process_index() > 0 or is_none or kept.is_dir():
        return

    def copy(to: Path) -> None:
        if model.origin is None:
            copy_tokenizer(local_path(str(named)), to)
        else:
            copy_files(model.origin, to)

    if is_remote(run):
        with tempfile.TemporaryDirectory(prefix="jaxllm-") as local:
            copy(Path(local))
            copy_folder(Path(local), kept)
    else:
        partial = kept.with_name(f"{KEPT}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        copy(partial)
        partial.replace(kept)


class Run(NamedTuple):
    """A run that is ready for its next step."""

    model: Model  # abstract, unless the state was just made from its weights
    batches: Batches
    steps: Steps
    state: TrainState
    base: dict[str, Any] | None = None  # of an adapter or DPO's reference: `describe_base`


def begin_run(config: TrainConfig, model: Model | None, mesh: Mesh) -> Run:
    """Prepares a new run. Raises ConfigError if its parts do not fit, or the processes differ."""
    start = _named_start(config, model)
    model = model_to_train(config, model)
    batches = make_batches(config, model, mesh)
    _check_agreement(model, batches)
    steps = make_steps(config, model, mesh)
    state = init_state(steps, starting_weights(config, model, mesh))
    if _refers_once(config):

        def refer(batch: dict[str, Any]) -> Any:
            return steps.refer(state, on_mesh(batch, mesh, config.batch_size))

        found = stored.compute(batches, refer)
        stored.write(run_folder(config.output), found)
        batches = stored.with_log_likelihoods(batches, found)
    return Run(model, batches, steps, state, _describe_start(config, state, start))


def _refers_once(config: TrainConfig) -> bool:
    """Whether the log-likelihoods of DPO's reference are computed before training."""
    return isinstance(config.data, PreferencesConfig) and config.loss.dpo.reference == "once"


def _describe_start(
    config: TrainConfig, state: TrainState, start: str | None
) -> dict[str, Any] | None:
    """Returns what a step says about the weights that a resumed run needs again, if it does."""
    if not needs_start(config):
        return None
    return describe_base(join(state.frozen, state.reference), start)


def _named_start(config: TrainConfig, model: Model | None) -> str | None:
    """Returns the checkpoint with the weights that an adapter belongs to."""
    if model is None or model.origin is None or not given_factors(model):
        return config.init_from
    return model.origin.checkpoint or config.init_from


def resume_run(config: TrainConfig, mesh: Mesh, step: Path, base: Model | None = None) -> Run:
    """Prepares a run to continue from the checkpoint in the folder `step`.

    Args:
        config: the run.
        mesh: its devices.
        step: the checkpoint.
        base: the weights of `config.init_from`, which an adapter and DPO's reference need.

    Raises:
        ConfigError: the config or the data would change the run's numbers; lists every change. Or
            these weights are not those that the run began with.
        CheckpointError: the checkpoint is damaged; in all processes, if one of them finds it so.
    """
    about, model = _read_together(step)
    named = _named_start(config, base)
    if needs_start(config):
        model = model_to_train(config, base)
    batches = make_batches(config, model, mesh)
    if _refers_once(config):
        found = stored.read(run_folder(config.output), batches)
        batches = stored.with_log_likelihoods(batches, found)
    _check_agreement(model, batches)
    problems = find_changes(about["run"], config, int(step.name))
    if about["data"] != batches.fingerprint():
        problems.append("the data differ from those that the run was trained on")
    if problems:
        raise ConfigError(
            "\n".join(f"cannot resume {config.output}: {problem}" for problem in problems)
        )
    steps = make_steps(config, model, mesh)
    described, start = None, None
    if needs_start(config):
        start = init_state(steps, starting_weights(config, model, mesh))
        described = _describe_start(config, start, named)
        assert described is not None, "it needs the start"
        check_base(about[ADAPTER] if config.optimizer.lora else about[REFERENCE], described)
    state = load_state(step, steps.abstract_state, start)
    saved = from_stored(about["run"], str(step))
    if config.steps != saved.steps:
        before, after = (make_schedule(run.optimizer, run.steps) for run in (saved, config))
        log.info("%s", describe_extension(before, after, saved.steps, config.steps))
    return Run(model, batches, steps, state, described)


def _read_together(step: Path) -> tuple[dict[str, Any], Model]:
    """Reads the metadata of a step; if a process cannot, none can."""
    problem = ""
    try:
        about = read_step(step, "run", "data").about
        model = from_description(about) if ADAPTER in about else read_model(step)[0]
    except CheckpointError as error:
        problem = "\n".join(error.problems)
    for found in gather_texts(problem):
        if found:
            raise CheckpointError(found.splitlines(), step)
    return about, model


def _check_agreement(model: Model, batches: Batches) -> None:
    """Raises UserError if other processes have other data or another model."""
    check_agreement({"model": describe(model)["config"], "data": batches.fingerprint()})
