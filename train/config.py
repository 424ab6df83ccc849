"""A run as frozen data: read from YAML, overridden on the command line, saved with every step."""

import dataclasses
import difflib
import functools
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from jaxllm.config import MOVED, Config, Dtype, Remat, config_class, is_moved, upgraded
from jaxllm.errors import UserError

from .data.documents import DataConfig
from .data.pairs import PairsConfig
from .data.tasks import TaskConfig
from .data.vectors import VectorsConfig
from .mesh import MeshConfig
from .optimizers.adamw import OptimizerConfig

Data = DataConfig | PairsConfig | VectorsConfig | TaskConfig


def find_data_class(values: Mapping[str, Any]) -> type[Data]:
    """The class that has fields of these names; text may leave out all of its own."""
    named = {"pairs": PairsConfig, "vectors": VectorsConfig, "task": TaskConfig}
    return next((kind for name, kind in named.items() if name in values), DataConfig)


class ConfigError(UserError):
    """What is wrong with a run's config, in one line for each problem."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A run: everything needed to repeat it."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    output: str  # folder of the run: config, metrics, plot, checkpoints
    steps: int
    batch_size: int  # sequences per optimizer step, over all devices
    seq_len: int  # tokens, or vectors; of a source as well
    model: Config | None = None  # an architecture to initialise ...
    init_from: str | None = None  # ... or a checkpoint to start from
    data: Data = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    accumulate: int = 1  # microbatches per step: the same update in less memory
    dtype: Dtype | None = None  # of activations; by default the model's. Parameters are float32
    remat: Remat | None = None  # by default the model's
    loss_chunk: int = 512  # tokens of a sequence whose logits are in memory at a time
    seed: int = 0  # of the initial weights
    log_every: int = 10
    eval_every: int = 100
    eval_batches: int = 16  # at most; what is held out may give fewer
    save_every: int = 100
    keep: int = 2  # newest checkpoints
    tensorboard: bool | None = None  # by default, if tensorboardX is installed
    wandb: str | None = None  # project

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


# What a resumed run may change: where and how it runs, not what it computes.
FREE_ON_RESUME = (
    *("output", "mesh", "log_every", "eval_every", "eval_batches", "save_every", "keep"),
    *("tensorboard", "wandb", "init_from"),
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The run of a YAML file, with `--a.b value` overrides.

    Raises ConfigError with every field that is unknown (and the nearest known one), missing or
    of the wrong type, and every old name of a field (and the new one), in the file or in an
    override. Any other bad override ends the process with status 2 and a suggestion.
    """
    config = from_dict(_read_file(path), str(path))
    if not overrides:
        return config
    if moved := [*_moved_overrides(overrides)]:
        raise ConfigError("\n".join(moved))
    import tyro

    return tyro.cli(
        TrainConfig,
        prog=f"jaxllm train {path}",
        args=list(overrides),
        default=config,
        config=(tyro.conf.AvoidSubcommands,),
    )


def load_stored(path: str | Path) -> TrainConfig:
    """The run of a file that `save_config` wrote, now or when fields had their old names."""
    return from_stored(_read_file(path), str(path))


def _moved_overrides(overrides: Sequence[str]) -> Iterator[str]:
    """A line for each override of a model's field by its old name."""
    for override in overrides:
        option = override.partition("=")[0]
        stack, _, name = option.replace("-", "_").removeprefix("__").rpartition(".")
        if stack in STACKS and name in MOVED:
            yield f"{option} is now --{stack}.{MOVED[name].replace('_', '-')}"


def _read_file(path: str | Path) -> Any:
    """The data of a YAML file. Raises ConfigError for a file that is none."""
    import yaml

    try:
        return _read_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None


def _read_yaml(text: str) -> Any:
    """The data of a YAML text. Raises YAMLError also for a key that occurs twice in a mapping."""
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
    """The run that plain data describes. Raises ConfigError, naming `place`."""
    from pydantic import ValidationError

    if not isinstance(data, dict):
        raise ConfigError(f"{place}: expected fields, as in configs/tiny.yaml, found {data!r}")
    try:
        return _reader().validate_python(data)
    except ValidationError as error:
        meant = [problem for problem in error.errors() if _is_meant(problem["loc"], data)]
        problems = [f"{place}: {_explain(problem)}" for problem in meant]
        raise ConfigError("\n".join(problems)) from None


def from_stored(data: Any, place: str) -> TrainConfig:
    """The run that `to_dict` described, now or when fields had their old names."""
    return from_dict(_upgraded(data) if isinstance(data, dict) else data, place)


def _upgraded(run: dict[str, Any]) -> dict[str, Any]:
    """A stored run with the names that fields of its model have now."""
    model = run.get("model")
    return {**run, "model": upgraded(model)} if isinstance(model, dict) else run


@functools.cache
def _reader() -> Any:
    """What checks plain data; it takes a moment to build."""
    from pydantic import TypeAdapter

    return TypeAdapter(TrainConfig)


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The run as plain data, for YAML."""
    return dataclasses.asdict(config)


def save_config(config: TrainConfig, path: Path) -> None:
    """Writes the resolved run as YAML, unless the file already says the same."""
    import yaml

    if path.exists() and load_stored(path) == config:
        return
    unfinished = path.with_suffix(".tmp")
    text = yaml.safe_dump(_listed(to_dict(config)), sort_keys=False)
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def find_changes(saved: dict[str, Any], config: TrainConfig) -> list[str]:
    """What differs from a saved run in a way that would change its numbers."""
    now = to_dict(config)
    return [
        f"{name}: {old!r} in the checkpoint, {new!r} now"
        for name, old, new in differences(_upgraded(saved), _listed(now))
        if name.partition(".")[0] not in FREE_ON_RESUME
    ]


# Where a run has the fields of a stack, whose names have changed.
STACKS = ("model", "model.encoder", "model.decoder")
# pydantic's errors for a field that is unknown, or is a part and is given a plain value.
OF_NAMES = ("unexpected_keyword_argument", "dataclass_type")
# Fields of one of some classes, and how the names of the fields given tell which one. pydantic
# tries each class and puts its name into the places of the errors; no data suits two of them.
CLASS_OF: dict[str, Callable[[Mapping[str, Any]], type]] = {
    "model": config_class,
    "data": find_data_class,
}


def _is_meant(loc: Sequence[int | str], data: dict[str, Any]) -> bool:
    """Whether a place is not in a class that was only tried."""
    field, *inside = loc or ("",)
    if field not in CLASS_OF or not inside:
        return True
    given = data[field]
    return inside[0] == CLASS_OF[field](given if isinstance(given, dict) else {}).__name__


def _explain(problem: Any) -> str:
    """One line for one of pydantic's errors, with the nearest field for an unknown one."""
    field, *inside = problem["loc"] or ("",)
    name = ".".join(map(str, [field, *(inside[1:] if field in CLASS_OF else inside)]))
    stack, _, last = name.rpartition(".")
    if stack in STACKS and problem["type"] in OF_NAMES and is_moved(last, problem["input"]):
        return f"{name} is now {stack}.{MOVED[last]}"
    if problem["type"] == "unexpected_keyword_argument":
        known = _fields_at(problem["loc"][:-1])
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        meant = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
        return f"unknown field {name!r}; {meant}"
    if problem["type"] == "missing":
        return f"{name} is missing"
    given = "" if isinstance(problem["input"], dict) else f"={problem['input']!r}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"{name}{given}: {message}" if name else message


def _fields_at(loc: Sequence[int | str]) -> list[str]:
    """The fields of the dataclass that a location such as ("optimizer",) leads to."""
    kinds: list[Any] = [TrainConfig]
    for key in loc:
        if isinstance(key, str):  # a field, or the class of it that was tried; not an index
            named = [kind for kind in kinds if kind.__name__ == key]
            kinds = named or _classes_of(typing.get_type_hints(kinds[0])[key])
    return [field.name for field in dataclasses.fields(kinds[0])]


def _classes_of(hint: Any) -> list[Any]:
    """The dataclasses that a type is, or is made of."""
    if dataclasses.is_dataclass(hint):
        return [hint]
    return [kind for part in typing.get_args(hint) for kind in _classes_of(part)]


def _listed(data: Any) -> Any:
    """The same data with lists for tuples, as YAML and JSON would give it back."""
    if isinstance(data, dict):
        return {key: _listed(value) for key, value in data.items()}
    return [_listed(item) for item in data] if isinstance(data, list | tuple) else data


def differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The dotted names under which plain data differ, and both values; None is what is missing."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
    elif old != new:
        yield name, old, new
