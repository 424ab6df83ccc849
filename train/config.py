"""Run configs: read from YAML, overridden on the command line, saved with every checkpoint."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from jaxllm.config import AttentionKernel, Config, Remat, config_class, upgraded
from jaxllm.config.checks import check_counts, check_fields, check_seed, show
from jaxllm.config.problems import Location, explain
from jaxllm.errors import UserError
from jaxllm.hub import local_path
from jaxllm.storage.paths import absolute_path, is_remote
from jaxllm.storage.whole_file import write_whole
from jaxllm.untrusted.regular_files import read_bytes
from jaxllm.untrusted.yaml_documents import MAX_BYTES, DocumentError, parse_yaml

from .data import Data, DataConfig, PreferencesConfig, find_data_class
from .data.mixture import find_problems
from .loss import LossConfig
from .mesh import MeshConfig
from .optimizers.config import OptimizerConfig
from .overrides import apply_overrides, correct_names, parse_overrides, renamed
from .settings.export import ExportConfig
from .settings.logging import LoggingConfig
from .settings.old_names import with_new_names
from .speed.options import SpeedConfig


class ConfigError(UserError):
    """An invalid run config, or one that does not fit its run; one problem per line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run: everything needed to reproduce it."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    RENAMED: ClassVar = {
        "loss_chunk": "loss.chunk_tokens, which counts tokens per device",
        "log_every": "logging.every",
        "tensorboard": "logging.tensorboard",
        "wandb": "logging.wandb",
    }

    output: str  # folder for the config, metrics, loss plot and checkpoints
    steps: int
    batch_size: int  # sequences per optimizer step, over all devices
    seq_len: int  # tokens or vectors per sequence; also the length of each source
    model: Config | None = None  # architecture to initialize (or give init_from)
    init_from: str | None = None  # checkpoint to start from (or give model)
    strict: bool = True  # whether to reject what is not understood in that checkpoint
    allow: tuple[str, ...] = ()  # its config fields to read as absent (NAME) or as NAME=VALUE
    data: Data = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    accumulate: int = 1  # microbatches per optimizer step: the same update, less memory
    # Of activations; None: the model's. Parameters stay float32. With float8, activations are
    # bfloat16 and projections multiply 8-bit floats.
    dtype: Literal["float32", "bfloat16", "float16", "float8"] | None = None
    remat: Remat | None = None  # which activations to recompute; None: the model's setting
    loss: LossConfig = LossConfig()
    attention_kernel: AttentionKernel | None = None  # None: the model's attention.kernel
    seed: int = 0  # for the initial weights and dropout
    eval_every: int = 100
    eval_batches: int = 16  # maximum number of held-out batches per evaluation
    save_every: int = 100
    keep: int = 2  # number of newest checkpoints to keep
    export: ExportConfig = ExportConfig()  # while training
    logging: LoggingConfig = LoggingConfig()
    speed: SpeedConfig = SpeedConfig()

    def __post_init__(self) -> None:
        check_fields(self)
        check_seed(self.seed)
        if (self.model is None) == (self.init_from is None):
            raise ValueError("give either model or init_from")
        counts = ("steps", "batch_size", "seq_len", "accumulate", "eval_every")
        check_counts(self, *counts, "eval_batches", "save_every", "keep")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of accumulate={self.accumulate}"
            )
        if self.optimizer.warmup_steps >= self.steps:
            raise ValueError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps} is not less than "
                f"steps={self.steps}"
            )
        if self.loss.z_loss and isinstance(self.data, PreferencesConfig):
            raise ValueError(
                f"loss.z_loss={self.loss.z_loss} is added to cross-entropies, but data.preferences "
                "are learned by loss.dpo"
            )
        self.speed.check_steps(self.steps)
        if self.export.every is not None and is_remote(self.output):
            raise ValueError(
                f"export.every={self.export.every} needs a local output; of a run on an object "
                "store, export a step with `jaxllm convert`"
            )


def load_config(
    path: str | Path, overrides: Sequence[str] = (), *, prog: str = "jaxllm train"
) -> TrainConfig:
    """Reads a run config from YAML and applies command-line overrides.

    Args:
        path: the YAML file. Old field names are read in a run's own copy, `<output>/config.yaml`.
        overrides: command-line arguments, as in `["--optimizer.learning_rate", "1e-3"]`.
        prog: the command that messages about overrides name.

    Raises:
        ConfigError: lists every field that is unknown (with the nearest known name), missing or
            of the wrong type, and every renamed field (with its new name). Each line begins with
            the file or the override that the value came from. A value in the file that an override
            replaces is not checked.
        SystemExit: status 2, after printing a suggestion, for an override that names no field; 0
            for `--help`.
    """
    if overrides and not overrides[0].startswith("-"):
        field, equals, value = overrides[0].partition("=")
        meant = f"--{field} {value}" if equals else "--steps 100"
        raise ConfigError(f"{overrides[0]!r} is not an option; write a field as in {meant}")
    data, given = read_yaml(path), parse_overrides(overrides)
    if _is_stored(path, data):
        data = _upgraded(data, str(path))
    if not given or not isinstance(data, dict):
        return from_dict(data, str(path))
    classes = _select_classes(data, [override.path for override in given])
    init_from = None if data.get("model") else data.get("init_from")
    wrong = [*correct_names(given, classes["model"], init_from)]
    if wrong := [*wrong, *renamed(given, TrainConfig, classes)]:
        raise ConfigError("\n".join(wrong))
    applied = apply_overrides(data, given, TrainConfig, classes)
    config = _validate(applied.data, classes, functools.partial(applied.origin, file=str(path)))
    if not applied.unknown:
        return config
    import tyro

    return tyro.cli(
        TrainConfig,
        prog=f"{prog} {path}",
        args=[text for override in applied.unknown for text in override.arguments],
        default=config,
        config=(tyro.conf.AvoidSubcommands,),
    )


def load_stored(path: str | Path) -> TrainConfig:
    """Reads a file that `save_config` wrote, also if it uses old field names."""
    return from_stored(read_yaml(path), str(path))


def _is_stored(path: str | Path, data: Any) -> bool:
    """Whether a file with these data is the copy of the config in the run's own folder."""
    output = data.get("output") if isinstance(data, dict) else None
    if not isinstance(output, str) or is_remote(path) != is_remote(output):
        return False
    return absolute_path(path) == absolute_path(output) / "config.yaml"


def read_yaml(path: str | Path) -> Any:
    """Returns the content of a YAML file. Raises ConfigError if it cannot be read or parsed."""
    try:
        return parse_yaml(read_bytes(local_path(path), MAX_BYTES).decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: invalid YAML: {error}") from None
    except DocumentError as error:
        raise ConfigError(f"{path}: {error}") from None


def from_dict(data: Any, place: str) -> TrainConfig:
    """Builds a config from plain data. Raises ConfigError; each line begins with `place`."""
    if not isinstance(data, dict):
        raise ConfigError(
            f"{place}: expected a mapping of fields, as in configs/tiny.yaml, found {show(data)}"
        )
    return _validate(data, _select_classes(data), lambda _: place)


def _validate(
    data: dict[str, Any], classes: Mapping[str, type], find_origin: Callable[[Location], str]
) -> TrainConfig:
    """Builds a config from plain data, whose union fields are meant to be of these classes.

    Raises ConfigError; each line begins with the origin of the value at its location.
    """
    from pydantic import ValidationError

    if wrong := find_problems(data.get("data")):
        place = find_origin(("data", "mixture"))
        raise ConfigError("\n".join(f"{place}: {problem}" for problem in wrong))
    try:
        return _type_adapter().validate_python(data)
    except ValidationError as error:
        problems = explain(error, TrainConfig, classes)
        raise ConfigError(
            "\n".join(f"{find_origin(problem.location)}: {problem.text}" for problem in problems)
        ) from None


def _select_classes(
    data: Mapping[str, Any], overridden: Iterable[Sequence[str]] = ()
) -> dict[str, type]:
    """Returns the class of each field that has a union type, by the names of the fields given.

    Args:
        data: the data of a run config.
        overridden: the paths of fields that are given besides.
    """
    picks: dict[str, Callable[[dict[str, Any]], type]]
    picks = {"model": config_class, "data": find_data_class}
    given = {field: inner if isinstance(inner := data.get(field), dict) else {} for field in picks}
    for first, *rest in overridden:  # those of a model in the file may be misspelled
        if first in picks and rest and not (first == "model" and given[first]):
            given[first] = {rest[0]: None} | given[first]
    return {field: pick(given[field]) for field, pick in picks.items()}


def from_stored(data: Any, place: str) -> TrainConfig:
    """Builds a config from what `to_dict` returned, also if it uses old field names."""
    return from_dict(_upgraded(data, place), place)


def _upgraded(run: Any, place: str = "the checkpoint") -> Any:
    """Brings a stored run up to date: old names of the model's fields, and what was the only way.

    Raises ConfigError if a field cannot be renamed.
    """
    if not isinstance(run, dict):
        return run
    run = with_new_names(run)
    data, model = run.get("data"), run.get("model")
    if isinstance(data, dict) and "text_key" in data and "packing" not in data:
        bos = None if data.get("tokenizer") is None else False
        run = {**run, "data": {**data, "packing": "joined", "bos": bos}}
    if not isinstance(model, dict):
        return run
    try:
        return {**run, "model": upgraded(model)}
    except ValueError as error:
        raise ConfigError(f"{place}: model: {error}") from None


@functools.cache
def _type_adapter() -> Any:
    """The pydantic validator of TrainConfig; cached because it is slow to build."""
    from pydantic import TypeAdapter

    return TypeAdapter(TrainConfig)


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Returns the config as plain data, for YAML."""
    return dataclasses.asdict(config)


def save_config(config: TrainConfig, path: Path) -> None:
    """Writes the resolved config as YAML, unless the file already holds an equal one."""
    import yaml

    if path.exists() and load_stored(path) == config:
        return
    write_whole(path, yaml.safe_dump(to_plain(config), sort_keys=False))


def to_plain(config: TrainConfig) -> Any:
    """Returns the config as YAML or JSON would give it back."""
    return _tuples_to_lists(to_dict(config))


def _tuples_to_lists(data: Any) -> Any:
    """Replaces tuples with lists, as a round trip through YAML or JSON would."""
    if isinstance(data, dict):
        return {key: _tuples_to_lists(value) for key, value in data.items()}
    return [_tuples_to_lists(item) for item in data] if isinstance(data, list | tuple) else data
