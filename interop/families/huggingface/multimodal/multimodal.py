"""Text parts of multimodal models: the language model is read, all other tensors go along.

A row of `_ROWS` describes a model type. Logits for text alone are those of the whole model: its
rotary positions, which differ between the axes of an image, are equal for text.
"""

import dataclasses
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.family import Family, Layout, RuleTable
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.naming.hf_family import hf_family
from jaxllm.interop.families.huggingface.output_norm.gemma2 import GEMMA2
from jaxllm.interop.families.huggingface.output_norm.gemma3_text import GEMMA3_TEXT
from jaxllm.interop.families.huggingface.output_norm.olmo2 import OLMO2
from jaxllm.interop.families.huggingface.pre_norm.llama import LLAMA
from jaxllm.interop.families.huggingface.pre_norm.mistral import MISTRAL
from jaxllm.interop.families.huggingface.pre_norm.phi3 import PHI3
from jaxllm.interop.families.huggingface.pre_norm.qwen2 import QWEN2
from jaxllm.interop.families.huggingface.pre_norm.qwen3 import QWEN3
from jaxllm.interop.families.huggingface.pre_norm.smollm3 import SMOLLM3
from jaxllm.interop.formats.stored_tensor import StoredTensor

from .class_defaults import CLASS_DEFAULTS

TEXT, TYPE, TIED = "text_config", "model_type", "tie_word_embeddings"
ARCHITECTURES = "architectures"
# Families of the text part, by the model_type of its config.
_TEXTS: dict[str, Family] = {
    **{
        str(family.model_type): family
        for family in (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3_TEXT, PHI3, OLMO2, SMOLLM3)
    },
    **{"qwen2_vl_text": QWEN2, "qwen2_5_vl_text": QWEN2, "qwen3_vl_text": QWEN3},
}
# Tensors outside of the text part, wherever they lie.
_OUTSIDE = (
    *("vision_tower", "vision_model", "visual", "multi_modal_projector", "image_newline"),
    *("audio_tower", "mm_projector", "embed_vision"),
)
_MROPE = ("mrope_section", "mrope_interleaved")  # of RoPE: how the axes of an image share a head
# Fields beside a flat text config.
_VISION_FIELDS = (
    *("vision_config", "image_token_id", "video_token_id", "vision_token_id"),
    *("vision_start_token_id", "vision_end_token_id", ARCHITECTURES, TYPE),
)


@dataclasses.dataclass(frozen=True)
class _Row:
    """A type of multimodal models.

    Attributes:
        model_type: its name.
        text: the model_type of its text config if that names none.
        tied: whether the head is tied if no field says so.
        tied_by_text: whether the text config's field ties the head as well.
        may_be_flat: whether the fields of the text config may lie in the config itself.
    """

    model_type: str
    text: str
    tied: bool = False
    tied_by_text: bool = True
    may_be_flat: bool = False

    def read_config(
        self, fields: Fields, stored: Mapping[str, StoredTensor]
    ) -> tuple[Json, Layout]:
        """Reads the text part of a `config.json`; the other fields are ignored.

        Raises ValueError if there is no text part of a supported type.
        """
        fields.ignore(*fields.data)
        given = self._text(fields.data)
        if not isinstance(given, Mapping):
            raise ValueError(f"{TEXT}={reprlib.repr(given)} is not an object")
        kind = given.get(TYPE) or self.text
        if not isinstance(kind, str) or kind not in _TEXTS:
            known = ", ".join(_TEXTS)
            raise ValueError(f"{TEXT}: {TYPE} {kind!r:.100} is not supported, only {known}")
        family = _TEXTS[kind]
        own = {name: value for name, value in given.items() if name != ARCHITECTURES}
        inner = family.fields(_plain_rope({**CLASS_DEFAULTS[kind], **own}))
        values, layout = family.read_config(inner, stored)
        fields.join(TEXT, inner)
        if values.get("head.kind") != "none":
            values = {**values, "head.tied": self._is_tied(fields.data)}
        return values, dataclasses.replace(layout, text=family.name)

    def write_config(self, config: DecoderConfig, base: Json) -> Json:
        """Writes the text part into the config that it came from.

        Raises ValueError for what the format does not support, and if there is no such config.
        """
        if base.get(TYPE) != self.model_type:
            raise ValueError(
                f"model_type {self.model_type!r} needs the image encoder of a checkpoint that the "
                "model came from"
            )
        given = self._text(base)
        family = _TEXTS[given.get(TYPE) or self.text]
        written = family.write_config(config, _plain_rope(dict(given)))
        own = {name: v for name, v in written.items() if name not in (TYPE, ARCHITECTURES)}
        kept = {name: given[name] for name in (TYPE, ARCHITECTURES) if name in given}
        outer = {**base, TIED: config.head.tied}
        if TEXT in base or not self.may_be_flat:
            return {**outer, TEXT: {**own, **kept}}
        return {**outer, **own}

    def table(self, config: DecoderConfig, layout: Layout) -> RuleTable:
        """Returns the rules of the text part; all other tensors are carried along.

        Raises ValueError if the layout is not that of a checkpoint with a text part.
        """
        family = next((one for one in _TEXTS.values() if one.name == layout.text), None)
        if family is None:
            raise ValueError(f"model_type {self.model_type!r} needs the type of its text part")
        plain = dataclasses.replace(layout, base=None, outer="", copies=(), lone=())
        why = f"outside of the text part of {self.model_type}"
        carried = {f"{prefix}{name}*": why for name in _OUTSIDE for prefix in ("", "*.")}
        return dataclasses.replace(family.table(config, plain), carried=carried)

    def _text(self, data: Json) -> Any:
        """Returns the fields of the text part."""
        if data.get(TEXT) is not None or not self.may_be_flat:
            return data.get(TEXT) or {}
        return {name: value for name, value in data.items() if name not in _VISION_FIELDS}

    def _is_tied(self, data: Json) -> bool:
        text = data.get(TEXT) or {}
        outer, inner = data.get(TIED), self.tied_by_text and text.get(TIED)
        return bool((self.tied if outer is None else outer) or inner)


def _plain_rope(text: Json) -> Json:
    """Returns the fields of a text config without the axes of RoPE, which are equal for text."""
    changed = dict(text)
    for name in ("rope_scaling", "rope_parameters"):
        if isinstance(rope := text.get(name), Mapping):
            kept = {key: value for key, value in rope.items() if key not in _MROPE}
            kinds = {key: "default" for key in ("type", "rope_type") if kept.get(key) == "mrope"}
            changed[name] = {**kept, **kinds}
    return changed


_ROWS: Sequence[_Row] = (
    _Row("gemma3", "gemma3_text", tied=True, tied_by_text=False),
    _Row("mistral3", "mistral", tied=True, tied_by_text=False),
    _Row("llava", "llama"),
    _Row("qwen2_vl", "qwen2_vl_text", may_be_flat=True),
    _Row("qwen2_5_vl", "qwen2_5_vl_text", may_be_flat=True),
    _Row("qwen3_vl", "qwen3_vl_text", tied_by_text=False),
)


def _family(row: _Row) -> Family:
    """Returns the family of a type of multimodal models."""
    family = hf_family(
        row.model_type,
        row.read_config,
        row.write_config,
        row.table,
        auto_class="AutoModelForImageTextToText",
        is_part=True,
    )
    return dataclasses.replace(family, reads=None)


MULTIMODAL = tuple(map(_family, _ROWS))
