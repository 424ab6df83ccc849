"""The sizes of a decoder in a config file, by Llama's names or a family's own."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.unsupported import (
    unsupported_by_equal_heads,
    unsupported_by_head_dim,
)

from .part import Part


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How a family's files give the sizes of a decoder.

    Attributes:
        max_len: the default of the longest sequence.
        kv_heads: the default of the key/value heads; None: as many as query heads.
        head_dim: the default of a head's width; None: the model's width divided by the heads.
        has_head_dim: whether the width of a head can be given.
        has_kv_heads: whether the number of key/value heads can be given; otherwise it is that of
            the query heads, unless another part gives it.
        is_multi_head: whether it must be that of the query heads.
        has_mlp_dim: whether the width of the MLP must be given; otherwise it may be null, or has no
            field, and is then four times the model's.
        names: maps Llama's names of fields to the family's own; "" if it has no such field.
        old_width: an old name of `hidden_size`, which wins if it is given.
    """

    max_len: int
    kv_heads: int | None = None
    head_dim: int | None = None
    has_head_dim: bool = True
    has_kv_heads: bool = True
    is_multi_head: bool = False
    has_mlp_dim: bool = True
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    old_width: str = ""

    def name(self, usual: str) -> str:
        """Returns the family's name of a field, by Llama's name."""
        return self.names.get(usual, usual)

    def read(self, fields: Fields) -> Json:
        """Returns our fields."""
        width = self._read_width(fields)
        heads = fields.take(self.name("num_attention_heads"), int)
        return {
            "vocab_size": fields.take(self.name("vocab_size"), int),
            "embed_dim": width,
            "num_layers": fields.take(self.name("num_hidden_layers"), int),
            "num_heads": heads,
            "num_kv_heads": self._read_kv_heads(fields, heads),
            "head_dim": self._read_head_dim(fields, width // max(heads, 1)),
            "mlp_dim": self._read_mlp_dim(fields, width),
            "max_len": self._read_max_len(fields),
            "init.std": fields.take(self.name("initializer_range"), float, 0.02),
        }

    def _read_width(self, fields: Fields) -> int:
        if self.old_width and (old := fields.take(self.old_width, int, None)) is not None:
            fields.known.add(self.name("hidden_size"))
            return old
        return fields.take(self.name("hidden_size"), int)

    def _read_max_len(self, fields: Fields) -> int:
        name = self.name("max_position_embeddings")
        return fields.take(name, int, self.max_len) if name else self.max_len

    def _read_kv_heads(self, fields: Fields, heads: int) -> int:
        if not self.has_kv_heads:
            return heads
        name = self.name("num_key_value_heads")
        given = fields.take_nullable(name, int, self.kv_heads or heads)
        return heads if given is None else given

    def _read_head_dim(self, fields: Fields, derived: int) -> int:
        if not self.has_head_dim:
            fields.require("head_dim", None, derived)
            return derived
        given = fields.take_nullable("head_dim", int, self.head_dim or derived)
        return derived if given is None else given

    def _read_mlp_dim(self, fields: Fields, width: int) -> int:
        name = self.name("intermediate_size")
        if self.has_mlp_dim:
            return fields.take(name, int)
        return fields.take(name, int, 4 * width) if name else 4 * width

    def write(self, config: DecoderConfig, base: Json) -> Json:
        """Returns the fields of the file."""
        ours = {
            "vocab_size": config.vocab_size,
            "hidden_size": config.embed_dim,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "intermediate_size": config.mlp_dim,
            "max_position_embeddings": config.max_len,
            "initializer_range": config.init.std,
        }
        if self.has_kv_heads:
            ours["num_key_value_heads"] = config.num_kv_heads
        if self.has_head_dim:
            ours["head_dim"] = config.head_dim
        old = {self.old_width: config.embed_dim} if self.old_width in base else {}
        return old | {self.name(usual): x for usual, x in ours.items() if self.name(usual)}

    def unsupported(self, config: DecoderConfig) -> dict[str, bool]:
        """Flags sizes that cannot be given."""
        is_free = bool(self.name("intermediate_size"))
        wide = {
            f"mlp_dim={config.mlp_dim} other than 4 * embed_dim": (
                not is_free and config.mlp_dim != 4 * config.embed_dim
            )
        }
        if self.is_multi_head:
            return wide | unsupported_by_equal_heads(config)
        return wide if self.has_head_dim else wide | unsupported_by_head_dim(config)


def sizes(max_len: int, **others: Any) -> Part:
    """All sizes of a decoder; the arguments are the attributes of `Sizes`."""
    found = Sizes(max_len=max_len, **others)
    return Part(found.read, found.write, unsupported=found.unsupported)
