"""What a family of checkpoints is: its config in both directions, and its rules."""

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
# A damaged config must not fill the memory: a model is laid out before its tensors are looked for.
MAX_INT = 2**31 - 1
MAX_COUNT = 10_000  # layers, experts
MAX_FLOAT = float(np.finfo(np.float32).max)
Part = TypeVar("Part")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a checkpoint's tensors are named and cut into files, where its config does not say."""

    model_parallel: int = 1
    embedding_split: Literal["vocab", "width"] = "vocab"
    names: Sequence[str] = ()  # of tensors that go by several, those that this checkpoint has
    experts: Literal["each", "fused"] = "each"  # a tensor for each expert, or one for all
    file: str = ""  # that held them, if the family does not say

    @property
    def written(self) -> Self:
        """The layout to write what was read in this one: fused experts need transformers 5."""
        return dataclasses.replace(self, experts="each")


@dataclasses.dataclass(frozen=True)
class Derived:
    """A stored tensor that the config determines: skipped on import, computed anew on export."""

    name: str
    compute: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Table:
    """Every tensor that a checkpoint of this config has, and what becomes of it."""

    rules: tuple[Rule, ...]
    sizes: Mapping[str, int]
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)  # copy: original
    derived: tuple[Derived, ...] = ()
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)  # pattern: why
    copies: Collection[str] = ()  # of the tied, those that are stored none the less
    file: str = ""  # to hold them, if the family does not say

    def bound(self, stacks: Stacks) -> tuple[BoundRule, ...]:
        """The rules, with their sizes, for a model whose layers are stacked so."""
        return bind(self.rules, self.sizes, stacks)


def without_type(fields: Json) -> Json:
    """The fields that are the arguments of a constructor."""
    return {name: value for name, value in fields.items() if name != "model_type"}


def in_order(model: Any, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """The source, if there is one, and the target."""
    return tuple(given[name] for name in ("source", "target") if name in given)


@dataclasses.dataclass(frozen=True)
class Family:
    """One spelling of checkpoints. All that differs between families is data of this type."""

    name: str
    format: str  # of `formats.table`, which says how its files are read and written
    config_file: str  # "" if it needs none
    model_type: str | None  # as its config file says, if it says
    read_config: Callable[["Fields", Mapping[str, StoredTensor]], tuple[Json, Layout]]
    write_config: Callable[[Any, Json], Json]  # on top of the JSON that it came with
    table: Callable[[Any, Layout], Table]
    config_class: type[Config] = DecoderConfig  # of the models that it can say
    # What parity runs, where it is not transformers: the PyTorch model of a config file's fields.
    reference: Callable[[Json], Any] | None = None
    # What that model is called with, of tensors by name: source, target and their masks.
    arguments: Callable[[Any, Mapping[str, Any]], tuple[Any, ...]] = in_order
    masks: Collection[str] = ()  # those of them that it takes

    def check_class(self, config: Config) -> None:
        """Raises ValueError for a config of a class that this family knows nothing of."""
        if not isinstance(config, self.config_class):
            ours, given = self.config_class.__name__, type(config).__name__
            raise ValueError(f"it is for models of {ours}, this is one of {given}")


def hf_family(
    name: str,
    read_config: Callable[["Fields", Mapping[str, StoredTensor]], tuple[Json, Layout]],
    write_config: Callable[[Any, Json], Json],
    table: Callable[[Any, Layout], Table],
    config_class: type[Config] = DecoderConfig,
) -> Family:
    """A family of Hugging Face's, which goes by its `model_type`."""
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
    """A config file being read. Each field must be taken, or declared not to matter."""

    def __init__(self, data: Json):
        self.data = data
        self.known: set[str] = set()
        self.ignored: set[str] = set()
        self.parts: dict[str, Fields] = {}
        self.problems: list[str] = []
        self.is_complete = True  # whether every value taken is the file's own, or a default

    def take(self, name: str, kind: type, default: Any = REQUIRED) -> Any:
        """The field's value; null and absence give the default. An int will do for a float."""
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
        """As `take`, of a field whose null is not its default: None."""
        if name in self.data and self.data[name] is None:
            self.known.add(name)
            return None
        return self.take(name, kind, default)

    def require(self, name: str, *allowed: Any) -> None:
        """Refuses a field whose value would change the numbers in a way not implemented."""
        self.known.add(name)
        if name in self.data and self.data[name] not in allowed:
            choices = " or ".join(map(repr, allowed))
            self.problems.append(f"{name}={self.data[name]!r} is not supported, only {choices}")

    def ignore(self, *names: str) -> None:
        """Declares fields that do not bear on the numbers."""
        self.known.update(names)
        self.ignored.update(names)

    def build(self, part: Callable[..., Part], /, **values: Any) -> Part | None:
        """A part of the config made of fields; None, and a problem, if they do not fit it."""
        if not self.problems:
            try:
                return part(**values)
            except ValueError as error:
                self.problems.append(str(error))
        self.is_complete = False
        return None

    @contextmanager
    def part(self, name: str) -> "Iterator[Fields]":
        """The fields of an object within this one, whose problems are this one's as well."""
        inner = Fields(self.take(name, dict, {}))
        yield inner
        self.is_complete &= inner.is_complete
        self.problems += [f"{name}: {problem}" for problem in inner.problems]
        self.parts[name] = inner

    def unknown(self) -> list[str]:
        """The fields that nobody understands."""
        own = [
            f"{name}={self.data[name]!r} is not a field that this family understands"
            + nearest(name, self.known)
            for name in self.data
            if name not in self.known
        ]
        inner = [f"{name}: {text}" for name, part in self.parts.items() for text in part.unknown()]
        return own + inner

    def finish(self) -> list[str]:
        """All that is wrong with the file, fields that nobody understands included."""
        return self.problems + self.unknown()

    def uses(self) -> dict[str, str]:
        """What becomes of each field of the file: it is read, ignored or unknown."""
        fates = {**dict.fromkeys(self.known, "read"), **dict.fromkeys(self.ignored, "ignored")}
        return {name: fates.get(name, "unknown") for name in self.data}


def _type_problem(name: str, value: Any, kind: type) -> str | None:
    """What is wrong with a field's value, before it is known what it is for."""
    if type(value) is not kind:
        return f"is not of type {kind.__name__}"
    if isinstance(value, float):
        return None if abs(value) <= MAX_FLOAT else "is no finite float32"
    if not isinstance(value, int):
        return None
    limit = MAX_COUNT if "layer" in name or "expert" in name else MAX_INT
    return f"is beyond {limit:,}" if abs(value) > limit else None


def nearest(name: str, candidates: Any) -> str:
    """A clause that names the candidate most like `name`, or nothing."""
    close = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.7)
    return f"; did you mean {close[0]!r}?" if close else ""


# Sizes, which every spelling has, and what does not bear on the numbers of a forward pass.
_SAID_BY_ALL = {
    *("vocab_size", "embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"),
    *("max_len", "norms.eps", "rope.layout", "init.std", "numerics.param_dtype", "numerics.dtype"),
    *("scan_layers", "remat", "dropout", "init.kind"),
}


def refuse(
    spelling: str, config: StackConfig, says: Collection[str], holds: Mapping[str, bool]
) -> None:
    """Raises ValueError with all of a config's architecture that `spelling` cannot say.

    Args:
        spelling: its name, for the message.
        config: of which every field that is not Llama's must be among `says`.
        says: the dotted names of fields.
        holds: what the spelling cannot say of those fields, and whether the config has it.
    """
    default = defaults(type(config))
    unsupported = {
        f"{name}={value!r}": value != default.get(name)
        for name, value in flatten(config).items()
        if name not in {*_SAID_BY_ALL, *says}
    }
    holds = {**unsupported, **holds}
    if wrong := [what for what, is_so in holds.items() if is_so]:
        raise ValueError(f"{spelling} cannot say {'; '.join(wrong)}")


def decoder_sizes(config: DecoderConfig) -> dict[str, int]:
    """The axes of a decoder's rules: the legend's letters, and a head's pairs (r 2, h H/2).

    Of experts: E of them, G projections into each, X its width, and S that of the shared one.
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
    """A rotated head's dimension in the model: which of its two axes varies slowest."""
    return {"half": "(r h)", "interleaved": "(h r)"}[config.rope.layout]
