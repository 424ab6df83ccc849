"""Families of Hugging Face checkpoints, also of models without a head, and under other prefixes."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from jaxllm.config import Config, DecoderConfig, has_head, with_head
from jaxllm.interop.families.common.config_fields import fields_read
from jaxllm.interop.families.common.family import Family, Layout, RuleTable
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.formats.stored_tensor import StoredTensor

from .heads import (
    LEFTOVERS,
    OTHER_HEADS,
    architecture_without_head,
    is_head,
    lacks_head,
    restore_head_fields,
    without_head,
)
from .prefixes import Prefixes, find_prefixes


def _with_leftovers(found: RuleTable) -> RuleTable:
    """Adds the tensors outside of the model that Hugging Face checkpoints of any family hold."""
    return dataclasses.replace(
        found,
        ignored={**LEFTOVERS, **found.ignored},
        carried={**OTHER_HEADS, **found.carried},
    )


class _Reader(NamedTuple):
    """The functions of a `Family`, extended to models without a head and to other prefixes.

    Attributes:
        own_read: `Family.read_config` of a model with a head, under the usual names.
        own_write: likewise `Family.write_config`.
        own_table: likewise `Family.table`.
        prefix: see `hf_family`.
        embeddings: see `hf_family`.
        with_head: see `hf_family`.
        head_bias: see `hf_family`.
    """

    own_read: Callable[[Fields, Mapping[str, StoredTensor]], tuple[Json, Layout]]
    own_write: Callable[[Any, Json], Json]
    own_table: Callable[[Any, Layout], RuleTable]
    prefix: str
    embeddings: Sequence[str]
    with_head: Collection[str]
    head_bias: bool

    def trainer_prefix(self, names: Collection[str]) -> str:
        """See `Family.trainer_prefix`."""
        outer = find_prefixes(names, self.prefix, self.embeddings).outer
        return outer if all(name.startswith(outer) for name in names) else ""

    def read_config(
        self, fields: Fields, stored: Mapping[str, StoredTensor]
    ) -> tuple[Json, Layout]:
        """See `Family.read_config`."""
        prefixes = find_prefixes(stored, self.prefix, self.embeddings)
        usual = prefixes.usual(stored)
        values, layout = self.own_read(fields, usual)
        tied = values.get("decoder", values).get("head.tied", False)
        bare = prefixes.base == "" and self.prefix != ""
        names = fields.data.get("architectures")
        architectures = None if names in [[name] for name in self.with_head] else names
        if lacks_head(architectures, usual, tied=tied, bare=bare):
            values = without_head(values)
        if prefixes.are_usual:
            return values, layout
        return values, dataclasses.replace(layout, base=prefixes.base, outer=prefixes.outer)

    def write_config(self, config: Any, base: Json) -> Json:
        """See `Family.write_config`."""
        if has_head(config):
            return self.own_write(config, base)
        written = self.own_write(with_head(config, bias=self.head_bias), base)
        names = [architecture_without_head(name) for name in written["architectures"]]
        return restore_head_fields(written, base, names)

    def table(self, config: Any, layout: Layout) -> RuleTable:
        """See `Family.table`."""
        whole = with_head(config, bias=self.head_bias)
        found = _with_leftovers(self.own_table(whole, layout))
        if not has_head(config):
            tied = {copy: one for copy, one in found.tied.items() if not is_head(copy)}
            rules = tuple(rule for rule in found.rules if not is_head(rule.stored.name))
            found = dataclasses.replace(found, rules=rules, tied=tied)
        if layout.base is not None:
            found = found.renamed(Prefixes(self.prefix, layout.base, layout.outer).stored)
        return found.with_copies(layout.copies, layout.lone) if layout.copies else found


def hf_family(
    model_type: str,
    read_config: Callable[[Fields, Mapping[str, StoredTensor]], tuple[Json, Layout]],
    write_config: Callable[[Any, Json], Json],
    table: Callable[[Any, Layout], RuleTable],
    config_class: type[Config] = DecoderConfig,
    prefix: str = "model.",
    embeddings: Sequence[str] = ("embed_tokens.weight",),
    with_head: Collection[str] = (),
    head_bias: bool = False,
    read_by: str | None = None,
    **others: Any,
) -> Family:
    """Returns a Hugging Face family.

    Args:
        model_type: see `Family`; also the family's name, unless `others` give one.
        read_config: see `Family`.
        write_config: see `Family`.
        table: see `Family`.
        config_class: see `Family`.
        prefix: of the names of the model without its head.
        embeddings: names that the embedding may have after the prefix, the usual one first.
        with_head: architectures whose checkpoints are language models in spite of their name.
        head_bias: whether the head of every model with one has a bias.
        read_by: the model type whose class reads these configs, if transformers has none of their
            own.
        others: other attributes of `Family`.
    """
    reader = _Reader(read_config, write_config, table, prefix, embeddings, with_head, head_bias)
    return Family(
        name=others.pop("name", model_type),
        format="hf",
        config_file="config.json",
        model_type=model_type,
        read_config=reader.read_config,
        write_config=reader.write_config,
        table=reader.table,
        config_class=config_class,
        reads=partial(fields_read, read_by or model_type),
        trainer_prefix=reader.trainer_prefix,
        **others,
    )
