"""Defines a checkpoint family: how its config is read and written, and its tensor rules."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Self

import numpy as np

from jaxllm.config import Config, DecoderConfig, make_config
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.binding import bind
from jaxllm.interop.rules.rule import BoundRule, Rule, Stacks

from .config_fields import ReadFields, fields_read
from .fields import Fields, Json


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a checkpoint's tensors are named and split into files, beyond what its config says."""

    model_parallel: int = 1
    embedding_split: Literal["vocab", "width"] = "vocab"
    names: Sequence[str] = ()  # the alternative tensor names that this checkpoint uses
    experts: Literal["each", "fused"] = "each"  # one tensor per expert, or one for all
    file: str = ""  # the file that held the tensors, if the family does not fix its name
    dtype: str = ""  # of most of its bytes, which need not be the one that its config names

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
class RuleTable:
    """Lists every tensor that a checkpoint of this config has, and how each one is handled."""

    rules: tuple[Rule, ...]
    sizes: Mapping[str, int]
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)  # copy: original
    derived: tuple[Derived, ...] = ()
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)  # pattern: reason
    copies: Collection[str] = ()  # the tied tensors that are stored nevertheless
    file: str = ""  # the file to write the tensors to, if the family does not fix its name

    def with_originals(self, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
        """Takes a copy for its original if only the copy is stored, such as T5's `embed_tokens`."""
        found = dict(tensors)
        for copy, original in self.tied.items():
            if original not in found and copy in found:
                found[original] = dataclasses.replace(found.pop(copy), name=original)
        return found

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
    read_config: Callable[[Fields, Mapping[str, StoredTensor]], tuple[Json, Layout]]
    write_config: Callable[[Any, Json], Json]  # of a config and the JSON it was read from
    table: Callable[[Any, Layout], RuleTable]
    config_class: type[Config] = DecoderConfig  # the class of models that it supports
    # Builds the PyTorch reference from the config file's fields; None means transformers.
    reference: Callable[[Json], Any] | None = None
    # Arguments of the reference, from tensors by name: source, target and their masks.
    arguments: Callable[[Any, Mapping[str, Any]], tuple[Any, ...]] = in_order
    masks: Collection[str] = ()  # the masks that the reference accepts
    base_prefix: str = ""  # of the tensors without a head, if files may lack it
    # Returns the fields of the config file that the original model reads; None if unknown.
    reads: Callable[[], ReadFields] | None = None

    @property
    def defined_in(self) -> str:
        """The file to name in errors about the config: the config file, or a user's rules."""
        return self.config_file or self.name

    def fields(self, config: Json) -> Fields:
        """Returns the fields of a config file, to be read by `read_config`."""
        return Fields(config, None if self.reads is None else self.reads())

    def find_field(
        self,
        config: Json,
        tensors: Mapping[str, StoredTensor],
        table: RuleTable,
        axis: str,
        size: int,
    ) -> str | None:
        """Returns the field of the config file that gives an axis its size: tries each that may.

        Args:
            config: the fields of the config file.
            tensors: the stored tensors.
            table: the rules for that config, with the present size of the axis.
            axis: the axis.
            size: the size that the axis should have.
        """
        now = table.sizes.get(axis)
        for name, value in config.items():
            if type(value) is not int or value != now:
                continue
            changed = self.fields({**config, name: size})
            try:
                values, layout = self.read_config(changed, tensors)
                sizes = self.table(make_config(values), layout).sizes
            except (ValueError, ArithmeticError, TypeError):
                continue
            if not changed.problems and sizes.get(axis) == size:
                return name
        return None

    def check_class(self, config: Config) -> None:
        """Raises ValueError if the config is not of the class that this family supports."""
        if not isinstance(config, self.config_class):
            ours, given = self.config_class.__name__, type(config).__name__
            raise ValueError(f"this family supports {ours}, but the model has a {given}")


# Tensors of Hugging Face checkpoints beside those of the language model.
LEFTOVERS = {
    "*rotary_emb.inv_freq": "derived from the config",
    "*coder.version": "the version of a file format",
    "*.masked_bias": "a constant of the mask",
}
OTHER_HEADS = dict.fromkeys(
    ("score.*", "v_head.*", "value_head.*", "reward_head.*", "classification_head.*"),
    "a head for another task",
)


def _with_leftovers(table: Callable[[Any, Layout], RuleTable], *given: Any) -> RuleTable:
    """Returns a table of rules that ignores leftovers too."""
    found = table(*given)
    return dataclasses.replace(found, ignored={**LEFTOVERS, **OTHER_HEADS, **found.ignored})


def hf_family(
    name: str,
    read_config: Callable[[Fields, Mapping[str, StoredTensor]], tuple[Json, Layout]],
    write_config: Callable[[Any, Json], Json],
    table: Callable[[Any, Layout], RuleTable],
    config_class: type[Config] = DecoderConfig,
    base_prefix: str = "model.",
) -> Family:
    """Returns a Hugging Face family, named by its `model_type`."""
    return Family(
        name=name,
        format="hf",
        config_file="config.json",
        model_type=name,
        read_config=read_config,
        write_config=write_config,
        table=partial(_with_leftovers, table),
        config_class=config_class,
        base_prefix=base_prefix,
        reads=partial(fields_read, name),
    )
