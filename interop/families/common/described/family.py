"""Makes a family of decoders from the parts of its config and a table of rules."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.decoder_axes import decoder_sizes
from jaxllm.interop.families.common.family import Family, Layout, RuleTable
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.naming.hf_family import hf_family
from jaxllm.interop.families.common.unsupported import refuse
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.rule import Rule

from .part import Part

NOTHING: Mapping[str, str] = MappingProxyType({})
# Fields that only transformers 5 has, or that it writes in other places than version 4.
OUTDATED = ("rope_parameters", "original_max_position_embeddings", "partial_rotary_factor", "dtype")


@dataclasses.dataclass(frozen=True)
class _Description:
    """A decoder family as `described_family` takes it: its parts and its rules."""

    model_type: str
    architecture: str
    parts: tuple[Part, ...]
    rules: Callable[[DecoderConfig, Layout], list[Rule]]
    read_layout: Callable[[Collection[str]], Layout]
    axes: Callable[[DecoderConfig], Mapping[str, int]]
    ignored: Mapping[str, str]
    unlike: Mapping[str, str]
    carried: Callable[[Layout], Mapping[str, str]]
    embedding: str
    head: str

    def read_config(
        self, fields: Fields, stored: Mapping[str, StoredTensor]
    ) -> tuple[Json, Layout]:
        """See `Family.read_config`."""
        config: Json = {}
        for part in self.parts:
            config |= part.read(fields)
        return config, self.read_layout(stored)

    def write_config(self, config: DecoderConfig, base: Json) -> Json:
        """See `Family.write_config`."""
        supported = [name for part in self.parts for name in part.supports]
        unsupported: dict[str, bool] = {}
        for part in self.parts:
            unsupported |= part.unsupported(config)
        refuse(f"model_type {self.model_type!r}", config, ("head.tied", *supported), unsupported)
        written: Json = {}
        for part in self.parts:
            written |= part.write(config, base)
        return {
            "architectures": [self.architecture],
            "pad_token_id": None,  # the class's default may lie outside the vocabulary
            **{name: value for name, value in base.items() if name not in OUTDATED},
            "model_type": self.model_type,
            "torch_dtype": config.numerics.param_dtype,
            **written,
        }

    def table(self, config: DecoderConfig, layout: Layout) -> RuleTable:
        """See `Family.table`."""
        rules = self.rules(config, layout)
        if not config.head.tied:
            rules = [*rules, Rule(f"{self.head} : V D", "lm_head.kernel : D V")]
        return RuleTable(
            tuple(rules),
            {**decoder_sizes(config), **self.axes(config)},
            tied={self.head: self.embedding} if config.head.tied else {},
            ignored=self.ignored,
            unlike=self.unlike,
            carried=self.carried(layout),
        )


def described_family(
    model_type: str,
    architecture: str,
    parts: Iterable[Part],
    rules: Callable[[DecoderConfig, Layout], list[Rule]],
    *,
    read_layout: Callable[[Collection[str]], Layout] = lambda stored: Layout(),
    axes: Callable[[DecoderConfig], Mapping[str, int]] = lambda config: {},
    ignored: Mapping[str, str] = NOTHING,
    unlike: Mapping[str, str] = NOTHING,
    carried: Callable[[Layout], Mapping[str, str]] = lambda layout: NOTHING,
    prefix: str = "model.",
    embedding: str = "embed_tokens.weight",
    head: str = "lm_head.weight",
    **others: Any,
) -> Family:
    """Returns the family of a `model_type` of Hugging Face decoders.

    Args:
        model_type: see `Family`.
        architecture: the class of transformers.
        parts: of the config.
        rules: returns the rules of every tensor but those of a head that is not tied.
        read_layout: detects the layout from the names of the stored tensors.
        axes: sizes of axes of the rules besides those of `decoder_sizes`.
        ignored: see `RuleTable`.
        unlike: see `RuleTable`.
        carried: returns what `RuleTable` says of tensors that are carried along.
        prefix: of the names of the model without its head.
        embedding: the name of the embedding after the prefix.
        head: the name of the head.
        others: further arguments of `hf_family`.
    """
    described = _Description(
        *(model_type, architecture, tuple(parts), rules, read_layout, axes, ignored, unlike),
        *(carried, prefix + embedding, head),
    )
    return hf_family(
        model_type,
        described.read_config,
        described.write_config,
        described.table,
        prefix=prefix,
        embeddings=(embedding,),
        **others,
    )
