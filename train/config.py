"""Run configs: read from YAML, overridden on the command line, saved with every checkpoint."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from jaxllm.config import MOVED, Config, Dtype, Remat, config_class, is_moved, upgraded
from jaxllm.errors import UserError, did_you_mean

from .data.documents import DataConfig
from .data.pairs import PairsConfig
from .data.tasks import TaskConfig
from .data.vectors import VectorsConfig
from .mesh import MeshConfig
from .optimizers.adamw import OptimizerConfig

Data = DataConfig | PairsConfig | VectorsConfig | TaskConfig


def find_data_class(values: Mapping[str, Any]) -> type[Data]:
    """Returns the data config class that these field names select; DataConfig by default.

    Every field of DataConfig is optional; each other class has a required field of its own.
    """
    by_field = {"pairs": PairsConfig, "vectors": VectorsConfig, "task": TaskConfig}
    return next((cls for field, cls in by_field.items() if field in values), DataConfig)


class ConfigError(UserError):
    """An invalid run config, or one that does not fit its run; one problem per line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run: everything needed to reproduce it."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    output: str  # folder for the config, metrics, loss plot and checkpoints
    steps: int
    batch_size: int  # sequences per optimizer step, over all devices
    seq_len: int  # tokens or vectors per sequence; also the length of each source
    model: Config | None = None  # architecture to initialize (or give init_from)
    init_from: str | None = None  # checkpoint to start from (or give model)
    data: Data = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    accumulate: int = 1  # microbatches per optimizer step: the same update, less memory
    dtype: Dtype | None = None  # activation dtype; None: the model's. Parameters stay float32
    remat: Remat | None = None  # which activations to recompute; None: the model's setting
    loss_chunk: int = 512  # tokens per sequence whose logits are in memory at a time
    seed: int = 0  # for the initial weights and dropout
    log_every: int = 10  # steps between progress lines, if the output is not a terminal
    eval_every: int = 100
    eval_batches: int = 16  # maximum number of held-out batches per evaluation
    save_every: int = 100
    keep: int = 2  # number of newest checkpoints to keep
    tensorboard: bool | None = None  # None: log to TensorBoard if tensorboardX is installed
    wandb: str | None = None  # Weights & Biases project to log to

    def __post_init__(self) -> None:
        if (self.model is None) == (self.init_from is None):
            raise ValueError("give either model or init_from")
        counts = ("steps", "batch_size", "seq_len", "accumulate", "loss_chunk", "log_every")
        for name in (*counts, "eval_every", "eval_batches", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is less than 1")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of accumulate={self.accumulate}"
            )
        if self.optimizer.warmup_steps >= self.steps:
            raise ValueError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps} is not less than "
                f"steps={self.steps}"
            )


# Fields that a resumed run may change: where and how it runs, not what it computes.
FREE_ON_RESUME = (
    *("output", "mesh", "log_every", "eval_every", "eval_batches", "save_every", "keep"),
    *("tensorboard", "wandb", "init_from"),
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Reads a run config from YAML and applies command-line overrides.

    Args:
        path: the YAML file.
        overrides: command-line arguments, as in `["--optimizer.learning_rate", "1e-3"]`.

    Raises:
        ConfigError: lists every field that is unknown (with the nearest known name), missing or
            of the wrong type, and every renamed field (with its new name), in the file or in an
            override.
        SystemExit: status 2, after printing a suggestion, for any other invalid override.
    """
    config = from_dict(_read_file(path), str(path))
    if not overrides:
        return config
    if renamed := [*_renamed_overrides(overrides)]:
        raise ConfigError("\n".join(renamed))
    import tyro

    return tyro.cli(
        TrainConfig,
        prog=f"jaxllm train {path}",
        args=list(overrides),
        default=config,
        config=(tyro.conf.AvoidSubcommands,),
    )


def load_stored(path: str | Path) -> TrainConfig:
    """Reads a file that `save_config` wrote, also if it uses old field names."""
    return from_stored(_read_file(path), str(path))


def _renamed_overrides(overrides: Sequence[str]) -> Iterator[str]:
    """Yields one line per override that uses the old name of a model field."""
    for override in overrides:
        option = override.partition("=")[0]
        stack, _, name = option.replace("-", "_").removeprefix("__").rpartition(".")
        if stack in STACKS and name in MOVED:
            yield f"{option} is now --{stack}.{MOVED[name].replace('_', '-')}"


def _read_file(path: str | Path) -> Any:
    """Returns the content of a YAML file. Raises ConfigError if it cannot be read or parsed."""
    import yaml

    try:
        return _read_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None


def _read_yaml(text: str) -> Any:
    """Parses YAML. Raises YAMLError also for a duplicate key, which safe_load would accept."""
    import yaml

    def check(node: Any) -> None:
        if isinstance(node, yaml.MappingNode):
            names = [key.value for key, _ in node.value]
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise yaml.YAMLError(f"{', '.join(map(repr, repeated))} occurs more than once")
            for _, value in node.value:
                check(value)

    check(yaml.compose(text, yaml.SafeLoader))
    return yaml.safe_load(text)


def from_dict(data: Any, place: str) -> TrainConfig:
    """Builds a config from plain data. Raises ConfigError; each line begins with `place`."""
    from pydantic import ValidationError

    if not isinstance(data, dict):
        raise ConfigError(
            f"{place}: expected a mapping of fields, as in configs/tiny.yaml, found {data!r}"
        )
    try:
        return _type_adapter().validate_python(data)
    except ValidationError as error:
        relevant = [problem for problem in error.errors() if _is_relevant(problem["loc"], data)]
        problems = [f"{place}: {_explain(problem)}" for problem in relevant]
        raise ConfigError("\n".join(problems)) from None


def from_stored(data: Any, place: str) -> TrainConfig:
    """Builds a config from what `to_dict` returned, also if it uses old field names."""
    return from_dict(_upgraded(data) if isinstance(data, dict) else data, place)


def _upgraded(run: dict[str, Any]) -> dict[str, Any]:
    """Renames old fields of the model in a stored run."""
    model = run.get("model")
    return {**run, "model": upgraded(model)} if isinstance(model, dict) else run


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
    unfinished = path.with_suffix(".tmp")
    text = yaml.safe_dump(_tuples_to_lists(to_dict(config)), sort_keys=False)
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def find_changes(saved: dict[str, Any], config: TrainConfig) -> list[str]:
    """Returns one line per field that differs from the saved run and affects its numbers."""
    now = to_dict(config)
    return [
        f"{name}: {old!r} in the checkpoint, {new!r} now"
        for name, old, new in differences(_upgraded(saved), _tuples_to_lists(now))
        if name.partition(".")[0] not in FREE_ON_RESUME
    ]


# Where a run config has the fields of a layer stack, some of which have been renamed.
STACKS = ("model", "model.encoder", "model.decoder")
# pydantic's error types for an unknown field and for a plain value where a group is expected.
NAME_ERRORS = ("unexpected_keyword_argument", "dataclass_type")
# Union fields, and functions that pick the class from the names of the fields given. pydantic
# tries each class and adds its name to the location of each error; no data fits two classes.
CLASS_OF: dict[str, Callable[[Mapping[str, Any]], type]] = {
    "model": config_class,
    "data": find_data_class,
}


def _is_relevant(loc: Sequence[int | str], data: dict[str, Any]) -> bool:
    """Whether an error location is outside the union classes that the data do not select."""
    field, *inside = loc or ("",)
    if field not in CLASS_OF or not inside:
        return True
    given = data[field]
    return inside[0] == CLASS_OF[field](given if isinstance(given, dict) else {}).__name__


def _explain(problem: Any) -> str:
    """Turns a pydantic error into one line; an unknown field comes with the nearest known one."""
    field, *inside = problem["loc"] or ("",)
    name = ".".join(map(str, [field, *(inside[1:] if field in CLASS_OF else inside)]))
    stack, _, last = name.rpartition(".")
    if stack in STACKS and problem["type"] in NAME_ERRORS and is_moved(last, problem["input"]):
        return f"{name} is now {stack}.{MOVED[last]}"
    if problem["type"] == "unexpected_keyword_argument":
        known = _fields_at(problem["loc"][:-1])
        hint = did_you_mean(str(problem["loc"][-1]), known)
        return f"unknown field {name!r}" + (hint or f"; known fields are {', '.join(known)}")
    if problem["type"] == "missing":
        return f"{name} is missing"
    given = "" if isinstance(problem["input"], dict) else f"={problem['input']!r}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"{name}{given}: {message}" if name else message


def _fields_at(loc: Sequence[int | str]) -> list[str]:
    """Returns the field names of the dataclass at an error location such as ("optimizer",)."""
    classes: list[Any] = [TrainConfig]
    for key in loc:
        if isinstance(key, str):  # a field, or the union class that was tried; not an index
            tried = [cls for cls in classes if cls.__name__ == key]
            classes = tried or _classes_of(typing.get_type_hints(classes[0])[key])
    return [field.name for field in dataclasses.fields(classes[0])]


def _classes_of(hint: Any) -> list[Any]:
    """Returns the dataclasses in a type hint: the type itself or the members of a union."""
    if dataclasses.is_dataclass(hint):
        return [hint]
    return [cls for part in typing.get_args(hint) for cls in _classes_of(part)]


def _tuples_to_lists(data: Any) -> Any:
    """Replaces tuples with lists, as a round trip through YAML or JSON would."""
    if isinstance(data, dict):
        return {key: _tuples_to_lists(value) for key, value in data.items()}
    return [_tuples_to_lists(item) for item in data] if isinstance(data, list | tuple) else data


def differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (dotted name, old value, new value) where plain data differ; None if missing."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
    elif old != new:
        yield name, old, new
