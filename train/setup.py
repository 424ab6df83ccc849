"""Setup of a run: its mesh, batches, model and initial state, each checked against the config."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllm.checkpoint_origin import KEPT, copy_files
from jaxllm.config import Config, StackConfig, TwoStackConfig, with_fields
from jaxllm.errors import UserError
from jaxllm.models import Model, build_abstract
from jaxllm.models.stack import check_positions
from jaxllm.params import check_parameters, describe, from_description, named_parameters, split
from jaxllm.tokenization import ByteTokenizer, check_tokens, find_tokenizer
from jaxllm.tokenization.finding import BYTES

from .checkpoint import Checkpoints
from .config import ConfigError, Data, TrainConfig, find_changes, load_stored
from .data.batches import Batches
from .data.documents import DataConfig
from .data.pairs import PairsConfig
from .data.placement import share_of
from .mesh import make_mesh
from .step import Steps, TrainState


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
        for stack in _stacks(model.config):
            check_positions(config.seq_len, stack)
        return Batches(
            with_tokenizer(config, model).load(model, config.seq_len),
            batch_size=config.batch_size,
            seed=config.data.seed,
            **share_of(mesh),
        )
    except (UserError, OSError) as error:
        raise ConfigError(str(error)) from error


def _stacks(config: Config) -> list[StackConfig]:
    """Returns the configs of a model's stacks, each of which reads sequences of `seq_len`."""
    return [config.encoder, config.decoder] if isinstance(config, TwoStackConfig) else [config]


def with_tokenizer(config: TrainConfig, model: Model) -> Data:
    """Returns the data of a run with its tokenizer: by default the one that its model came with.

    That is the one of the run or of the checkpoint that `init_from` names, or of the checkpoint
    that the model was first loaded from.

    Raises:
        UserError: the model came with none, and its vocabulary is not that of bytes.
    """
    data = config.data
    if not isinstance(data, DataConfig | PairsConfig):
        return data
    if data.tokenizer is not None or config.init_from is None:
        return data
    start = Path(config.init_from)
    if (start / "config.yaml").is_file():
        earlier = load_stored(start / "config.yaml")
        own = with_tokenizer(earlier, model)
        if isinstance(own, DataConfig | PairsConfig) and own.tokenizer is not None:
            return dataclasses.replace(data, tokenizer=own.tokenizer, eos=data.eos or own.eos)
        if earlier.model is not None:
            return dataclasses.replace(data, tokenizer=BYTES)
    folders = [start] if model.origin is None else [start, Path(model.origin.directory)]
    found = find_tokenizer(folders)
    if found is not None:
        return dataclasses.replace(data, tokenizer=str(found))
    check_tokens(ByteTokenizer(), model.config, is_chosen=False, option="data.tokenizer")
    return data


def model_to_train(
    config: TrainConfig, model: Model | None, checkpoints: Checkpoints, *, resume: bool
) -> Model:
    """Returns the model to train: abstract (shapes only) unless weights are given.

    Raises ConfigError if the output folder has nothing to resume or a run that would be
    overwritten, or if `model` is missing, unexpected or not float32; CheckpointError if its
    parameters are not those of its config, so that the run could not be resumed.
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
        check_parameters(model)
        bind, _ = split(from_description(describe(model), given))
        model = bind(split(model)[1])
    else:
        raise ConfigError(
            f"init_from={config.init_from!r} names a checkpoint, but no model was given; load it "
            "with load_pretrained and give it as `model`"
        )
    _check_float32(model)
    return model


def keep_origin(model: Model, run: Path) -> None:
    """Copies the tokenizer and other files of the model's origin into the run, which exports them.

    Process 0 does, unless the run has them already.
    """
    kept = run / KEPT
    if jax.process_index() == 0 and model.origin is not None and not kept.is_dir():
        partial = kept.with_name(f"{KEPT}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        copy_files(model.origin, partial)
        partial.replace(kept)


def check_unchanged(config: TrainConfig, checkpoints: Checkpoints, batches: Batches) -> None:
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
