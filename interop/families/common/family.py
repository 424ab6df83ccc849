"""Defines a checkpoint family: how its config is read and written, and its tensor rules."""

import dataclasses
import difflib
import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Self, TypeVar

import numpy as np

from jaxllm.config import Config, DecoderConfig, StackConfig, defaults, flatten
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.bijection import bind
from jaxllm.interop.rules.rule import BoundRule, Rule, Stacks

Json = dict[str, Any]
REQUIRED: Any = object()
# Limits that keep a damaged config from filling memory: the model is laid out before its tensors
# are looked up.
MAX_INT = 2**31 - 1
MAX_COUNT = 10_000  # layers, experts
MAX_FLOAT = float(np.finfo(np.float32).max)
Part = TypeVar("Part")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a checkpoint's tensors are named and split into files, beyond what its config says."""

    model_parallel: int = 1
    embedding_split: Literal["vocab", "width"] = "vocab"
    names: Sequence[str] = ()  # the alternative tensor names that this checkpoint uses
    experts: Literal["each", "fused"] = "each"  # one tensor per expert, or one for all
    file: str = ""  # the file that held the tensors, if the family does not fix its name

    @property
    def written(self) -> Self:
        """The layout for writing: experts one by one, since fused ones need transformers 5."""
        return dataclasses.replace(self, experts="each")


@dataclasses.dataclass(frozen=True)
class Derived:
    """A stored tensor that follows from the config: skipped on import, recomputed on export."""

    name: str
    compute: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Table:
    """Lists every tensor that a checkpoint of this config has, and how each one is handled."""

    rules: tuple[Rule, ...]
    sizes: Mapping[str, int]
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)  # copy: original
    derived: tuple[Derived, ...] = ()
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)  # pattern: reason
    copies: Collection[str] = ()  # the tied tensors that are stored nevertheless
    file: str = ""  # the file to write the tensors to, if the family does not fix its name

    def bound(self, stacks: Stacks) -> tuple[BoundRule, ...]:
        """Returns the rules with their sizes for a model whose layers are stacked this way."""
        return bind(self.rules, self.sizes, stacks)


def without_type(fields: Json) -> Json:
    """Returns the constructor's arguments: all fields except `model_type`."""
    return {name: value for name, value in fields.items() if name != "model_type"}


def in_order(model: Any, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the reference model's arguments: the source, if there is one, then the target."""
    return tuple(given[name] for name in ("source", "target") if name in given)


@dataclasses.dataclass(frozen=True)
class Family:
    """A checkpoint family: everything that differs between families is data of this type."""

    name: str
    format: str  # a row of `formats.table`, which defines how files are read and written
    config_file: str  # "" if the family needs none
    model_type: str | None  # the value in the config file, if it has one
    read_config: Callable[["Fields", Mapping[str, StoredTensor]], tuple[Json, Layout]]
    write_config: Callable[[Any, Json], Json]  # of a config and the JSON it was read from
    table: Callable[[Any, Layout], Table]
    config_class: type[Config] = DecoderConfig  # the class of models that it supports
    # Builds the PyTorch reference from the config file's fields; None means transformers.
    reference: Callable[[Json], Any] | None = None
    # Arguments of the reference, from tensors by name: source, target and their masks.
    arguments: Callable[[Any, Mapping[str, Any]], tuple[Any, ...]] = in_order
    masks: Collection[str] = ()  # the masks that the reference accepts

    def check_class(self, config: Config) -> None:
        """Raises ValueError if the config is not of the class that this family supports."""
        if not isinstance(config, self.config_class):
            ours, given = self.config_class.__name__, type(config).__name__
            raise ValueError(f"this family supports {ours}, but the model has a {given}")


def hf_family(
    name: str,
    read_config: Callable[["Fields", Mapping[str, StoredTensor]], tuple[Json, Layout]],
    write_config: Callable[[Any, Json], Json],
    table: Callable[[Any, Layout], Table],
    config_class: type[Config] = DecoderConfig,
) -> Family:
    """Returns a Hugging Face family, named by its `model_type`."""
    return Family(
        name=name,
        format="hf",
        config_file="config.json",
        model_type=name,
        read_config=read_config,
        write_config=write_config,
        table=table,
        config_class=config_class,
    )


class Fields:
    """A config file being read: every field must be taken or explicitly ignored.

    Problems are collected rather than raised, so that all are reported at once.
    """

    def __init__(self, data: Json):
        self.data = data
        self.known: set[str] = set()
        self.ignored: set[str] = set()
        self.parts: dict[str, Fields] = {}
        self.problems: list[str] = []
        self.is_complete = True  # False once a value is missing or invalid

    def take(self, name: str, kind: type, default: Any = REQUIRED) -> Any:
        """Returns the value, or the default if null or absent; accepts an int for a float."""
        self.known.add(name)
        value = self.data.get(name)
        if value is None:
            if default is not REQUIRED:
                return default
            self.problems.append(f"{name} is missing")
            self.is_complete = False
            return kind()
        if kind is float and type(value) is int:
            value = float(value) if abs(value) <= MAX_INT else value
        if problem := _type_problem(name, value, kind):
            self.problems.append(f"{name}={reprlib.repr(value)} {problem}")
            self.is_complete = False
            return kind() if default is REQUIRED else default
        return value

    def take_nullable(self, name: str, kind: type, default: Any = REQUIRED) -> Any:
        """As `take`, but an explicit null gives None instead of the default."""
        if name in self.data and self.data[name] is None:
            self.known.add(name)
            return None
        return self.take(name, kind, default)

    def require(self, name: str, *allowed: Any) -> None:
        """Records a problem if the field has a value other than the implemented ones, `allowed`."""
        self.known.add(name)
        if name in self.data and self.data[name] not in allowed:
            choices = " or ".join(map(repr, allowed))
            self.problems.append(f"{name}={self.data[name]!r} is not supported, only {choices}")

    def ignore(self, *names: str) -> None:
        """Declares fields that do not affect the computed numbers."""
        self.known.update(names)
        self.ignored.update(names)

    def build(self, part: Callable[..., Part], /, **values: Any) -> Part | None:
        """Builds a part of the config; on invalid values, returns None and records the problem."""
        if not self.problems:
            try:
                return part(**values)
            except ValueError as error:
                self.problems.append(str(error))
        self.is_complete = False
        return None

    @contextmanager
    def part(self, name: str) -> "Iterator[Fields]":
        """Reads a nested object; its problems are added to this one's."""
        inner = Fields(self.take(name, dict, {}))
        yield inner
        self.is_complete &= inner.is_complete
        self.problems += [f"{name}: {problem}" for problem in inner.problems]
        self.parts[name] = inner

    def unknown(self) -> list[str]:
        """Lists the fields that were neither taken nor ignored, as problems."""
        own = [
            f"{name}={self.data[name]!r} is not a field known to this family"
            + nearest(name, self.known)
            for name in self.data
            if name not in self.known
        ]
        inner = [f"{name}: {text}" for name, part in self.parts.items() for text in part.unknown()]
        return own + inner

    def finish(self) -> list[str]:
        """Returns all problems of the file, including unknown fields."""
        return self.problems + self.unknown()

    def uses(self) -> dict[str, str]:
        """Maps each field of the file to "read", "ignored" or "unknown"."""
        fates = {**dict.fromkeys(self.known, "read"), **dict.fromkeys(self.ignored, "ignored")}
        return {name: fates.get(name, "unknown") for name in self.data}


def _type_problem(name: str, value: Any, kind: type) -> str | None:
    """Checks a field's type and range; returns the problem, or None."""
    if type(value) is not kind:
        return f"is not of type {kind.__name__}"
    if isinstance(value, float):
        return None if abs(value) <= MAX_FLOAT else "is not a finite float32"
    if not isinstance(value, int):
        return None
    limit = MAX_COUNT if "layer" in name or "expert" in name else MAX_INT
    return f"exceeds the limit of {limit:,}" if abs(value) > limit else None


def nearest(name: str, candidates: Any) -> str:
    """Returns a "did you mean" clause for the most similar candidate, or an empty string."""
    close = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.7)
    return f"; did you mean {close[0]!r}?" if close else ""


# Fields that every format supports: sizes, and what does not affect a forward pass.
_ALWAYS_SUPPORTED = {
    *("vocab_size", "embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"),
    *("max_len", "norms.eps", "rope.layout", "init.std", "numerics.param_dtype", "numerics.dtype"),
    *("scan_layers", "remat", "dropout", "init.kind"),
}


def refuse(
    format_name: str,
    config: StackConfig,
    supported: Collection[str],
    unsupported: Mapping[str, bool],
) -> None:
    """Raises ValueError listing everything in the config that a format does not support.

    Args:
        format_name: the name of the format, for the message.
        config: every field of it that differs from the default (Llama's) must be in `supported`.
        supported: dotted names of the fields that the format supports.
        unsupported: maps descriptions of unsupported values of these fields to whether the config
            has them.
    """
    default = defaults(type(config))
    unknown_fields = {
        f"{name}={value!r}": value != default.get(name)
        for name, value in flatten(config).items()
        if name not in {*_ALWAYS_SUPPORTED, *supported}
    }
    found = {**unknown_fields, **unsupported}
    if problems := [description for description, is_present in found.items() if is_present]:
        raise ValueError(f"{format_name} does not support {'; '.join(problems)}")


def decoder_sizes(config: DecoderConfig) -> dict[str, int]:
    """Returns the axis sizes of a decoder's rules.

    Besides the legend's letters: a head's rotated pairs (r = 2, h = H/2). For experts: E experts,
    G input projections each, X their width, S the width of the shared expert.
    """
    sizes = {
        "V": config.vocab_size,
        "D": config.embed_dim,
        "L": config.num_layers,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "H": config.head_dim,
        "r": 2,
        "h": config.head_dim // 2,
        "F": config.mlp_dim,
        "G": 2,
    }
    if config.experts is not None:
        sizes |= {"E": config.experts.num_experts, "X": config.experts.mlp_dim}
        sizes["S"] = config.experts.shared_mlp_dim or 0
    return sizes


def head_pairs(config: DecoderConfig) -> str:
    """Returns the axes of a rotated head in the model, the slowest-varying first."""
    return {"half": "(r h)", "interleaved": "(h r)"}[config.rope.layout]
