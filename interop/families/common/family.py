"""Defines a checkpoint family: how its config is read and written, and its tensor rules."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np

from jaxllm.config import (
    Config,
    DecoderConfig,
    EncoderDecoderConfig,
    has_head,
    make_config,
)
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.binding import bind
from jaxllm.interop.rules.rule import BoundRule, Rule, Stacks

from .config_fields import ReadFields
from .fields import Fields, Json


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a checkpoint's tensors are named and split into files, beyond what its config says."""

    model_parallel: int = 1
    embedding_split: Literal["vocab", "width"] = "vocab"
    names: Sequence[str] = ()  # the alternative tensor names that this checkpoint uses
    experts: Literal["each", "fused"] = "each"  # one tensor per expert, or one for all
    head: str = ""  # the head's name in modules of transformers, if files name it differently
    file: str = ""  # the file that held the tensors, if the family does not fix its name
    dtype: str = ""  # of most of its bytes, which need not be the one that its config names
    # What the names have in place of the family's prefix (None: that prefix), and before the head.
    base: str | None = None
    outer: str = ""
    text: str = ""  # of a multimodal model: the family of its text part
    copies: Sequence[str] = ()  # the stored tensors that equal another
    lone: Sequence[str] = ()  # originals that are not stored themselves, only as a copy

    @property
    def written(self) -> Self:
        """The layout of files: experts one by one, since fused ones need transformers 5."""
        return dataclasses.replace(self, experts="each", head="")


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
    # Tensors that are not part of the model but are written back as they were; pattern: reason.
    carried: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # Modules of the reference whose outputs are not those of the model's modules; pattern: reason.
    unlike: Mapping[str, str] = dataclasses.field(default_factory=dict)
    copies: Collection[str] = ()  # the tied tensors that are stored nevertheless
    file: str = ""  # the file to write the tensors to, if the family does not fix its name

    def with_originals(self, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
        """Renames each copy to its original where only the copy is stored."""
        found = dict(tensors)
        for copy, original in self.tied.items():
            if original not in found and copy in found:
                found[original] = dataclasses.replace(found.pop(copy), name=original)
        return found

    def renamed(self, rename: Callable[[str], str]) -> "RuleTable":
        """Returns the table with other names of the tensors; patterns are kept and renamed, too."""

        def both(patterns: Mapping[str, str]) -> dict[str, str]:
            return {**patterns, **{rename(one): why for one, why in patterns.items()}}

        return dataclasses.replace(
            self,
            rules=tuple(rule.with_stored(rename(rule.stored.name)) for rule in self.rules),
            tied={rename(copy): rename(original) for copy, original in self.tied.items()},
            derived=tuple(dataclasses.replace(d, name=rename(d.name)) for d in self.derived),
            ignored=both(self.ignored),
            carried=both(self.carried),
            unlike=both(self.unlike),
            copies=[rename(copy) for copy in self.copies],
        )

    def with_copies(self, copies: Sequence[str], lone: Sequence[str]) -> "RuleTable":
        """Returns the table for a checkpoint that stores copies of tied tensors.

        Args:
            copies: the stored copies.
            lone: the originals that are not stored; the first copy of each takes its place.
        """
        first = {one: next(copy for copy in copies if self.tied[copy] == one) for one in lone}
        rules = (
            rule.with_stored(first.get(rule.stored.name, rule.stored.name)) for rule in self.rules
        )
        tied = {copy: first.get(original, original) for copy, original in self.tied.items()}
        return dataclasses.replace(
            self,
            rules=tuple(rules),
            tied={copy: original for copy, original in tied.items() if copy != original},
            copies=[copy for copy in copies if copy not in first.values()],
        )

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
    is_part: bool = False  # whether a model needs the tensors that are carried along
    auto_class: str = ""  # the class of transformers that reads its checkpoints, if it is another
    # Returns the prefix that a trainer has put before the names of all tensors, if there is one.
    trainer_prefix: Callable[[Collection[str]], str] = lambda names: ""
    # Whether a checkpoint with tensors of these names is of this family, if several families have
    # the same model_type.
    applies: Callable[[Collection[str]], bool] = lambda names: True
    # Returns the fields of the config file that the original model reads; None if unknown.
    reads: Callable[[], ReadFields] | None = None

    @property
    def defined_in(self) -> str:
        """The file to name in errors about the config: the config file, or a user's rules."""
        return self.config_file or self.name

    def fields(self, config: Json) -> Fields:
        """Returns the fields of a config file, to be read by `read_config`."""
        return Fields(config, None if self.reads is None else self.reads())

    def table_of(
        self, config: Any, layout: Layout, names: Collection[str]
    ) -> tuple[RuleTable, Layout]:
        """Returns the table for a checkpoint, and its layout with the copies that it stores."""
        tied = self.table(config, layout).tied
        copies = [copy for copy in tied if copy in names]
        lone = dict.fromkeys(tied[copy] for copy in copies if tied[copy] not in names)
        layout = dataclasses.replace(layout, copies=copies, lone=list(lone))
        return self.table(config, layout), layout

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

    def class_of(self, config: Config) -> str:
        """Returns the class of transformers whose outputs are those of a model of this config."""
        if self.auto_class or not has_head(config):
            return self.auto_class or "AutoModel"
        has_encoder = isinstance(config, EncoderDecoderConfig)
        return "AutoModelForSeq2SeqLM" if has_encoder else "AutoModelForCausalLM"

    def check_class(self, config: Config) -> None:
        """Raises ValueError if the config is not of the class that this family supports."""
        if not isinstance(config, self.config_class):
            ours, given = self.config_class.__name__, type(config).__name__
            raise ValueError(f"this family supports {ours}, but the model has a {given}")
