"""What a family of checkpoints is: its config in both directions, and its rules."""

import dataclasses
import difflib
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, TypeVar

import numpy as np

from jaxllm.config import DecoderConfig
from jaxllm.interop.rules import BoundRule, Rule, Stacks
from jaxllm.interop.tensors import StoredTensor

Json = dict[str, Any]
REQUIRED: Any = object()
Part = TypeVar("Part")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a checkpoint's tensors are cut into files, where its config does not say."""

    model_parallel: int = 1
    embedding_split: Literal["vocab", "width"] = "vocab"


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

    def bound(self, stacks: Stacks) -> tuple[BoundRule, ...]:
        """The rules, with their sizes, for a model whose layers are stacked so."""
        return tuple(bound for rule in self.rules for bound in rule.bound(self.sizes, stacks))


@dataclasses.dataclass(frozen=True)
class Family:
    """One spelling of checkpoints. All that differs between families is data of this type."""

    name: str
    format: str  # what `save_pretrained` calls it
    storage: Literal["safetensors", "state_dict", "consolidated"]
    config_file: str
    model_type: str | None  # as its config file says, if it says
    read_config: Callable[["Fields", Mapping[str, StoredTensor]], tuple[Json, Layout]]
    write_config: Callable[[DecoderConfig, Json], Json]  # on top of the JSON that it came with
    table: Callable[[DecoderConfig, Layout], Table]


class Fields:
    """A config file being read. Each field must be taken, or declared not to matter."""

    def __init__(self, data: Json):
        self.data = data
        self.known: set[str] = set()
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
            return float(value)
        if type(value) is not kind:
            self.problems.append(f"{name}={value!r} is not of type {kind.__name__}")
            self.is_complete = False
            return kind() if default is REQUIRED else default
        return value

    def require(self, name: str, *allowed: Any) -> None:
        """Refuses a field whose value would change the numbers in a way not implemented."""
        self.known.add(name)
        if name in self.data and self.data[name] not in allowed:
            choices = " or ".join(map(repr, allowed))
            self.problems.append(f"{name}={self.data[name]!r} is not supported, only {choices}")

    def ignore(self, *names: str) -> None:
        """Declares fields that do not bear on the numbers."""
        self.known.update(names)

    def build(self, part: type[Part], /, **values: Any) -> Part | None:
        """A part of the config made of fields; None, and a problem, if they do not fit it."""
        if self.problems:
            return None
        try:
            return part(**values)
        except ValueError as error:
            self.problems.append(str(error))
            return None

    def finish(self) -> list[str]:
        """All that is wrong with the file, fields that nobody understands included."""
        unknown = [
            f"{name}={self.data[name]!r} is not a field that this family understands"
            + nearest(name, self.known)
            for name in self.data
            if name not in self.known
        ]
        return self.problems + unknown


def nearest(name: str, candidates: Any) -> str:
    """A clause that names the candidate most like `name`, or nothing."""
    close = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.7)
    return f"; did you mean {close[0]!r}?" if close else ""


# Sizes, which every spelling has, and what does not bear on the numbers of a forward pass.
_SAID_BY_ALL = {
    *("vocab_size", "embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"),
    *("max_len", "norm_eps", "rope_layout", "init_std", "param_dtype", "dtype", "scan_layers"),
    "remat",
}


def refuse(
    spelling: str, config: DecoderConfig, says: Collection[str], holds: Mapping[str, bool]
) -> None:
    """Raises ValueError with all of a config's architecture that `spelling` cannot say.

    Args:
        spelling: its name, for the message.
        config: of which every field that is not Llama's must be among `says`.
        says: the names of fields.
        holds: what the spelling cannot say of those fields, and whether the config has it.
    """
    unsaid = {
        f"{field.name}={value!r}": value != field.default
        for field in dataclasses.fields(config)
        if field.name not in {*_SAID_BY_ALL, *says}
        for value in [getattr(config, field.name)]
    }
    holds = {**unsaid, **holds}
    if wrong := [what for what, is_so in holds.items() if is_so]:
        raise ValueError(f"{spelling} cannot say {'; '.join(wrong)}")


def decoder_sizes(config: DecoderConfig) -> dict[str, int]:
    """The axes of a decoder's rules: the legend's letters, and a head's pairs (r 2, h H/2)."""
    return {
        "V": config.vocab_size,
        "D": config.embed_dim,
        "L": config.num_layers,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "H": config.head_dim,
        "r": 2,
        "h": config.head_dim // 2,
        "F": config.mlp_dim,
    }


def head_pairs(config: DecoderConfig) -> str:
    """A rotated head's dimension in the model: which of its two axes varies slowest."""
    return {"half": "(r h)", "interleaved": "(h r)"}[config.rope_layout]
