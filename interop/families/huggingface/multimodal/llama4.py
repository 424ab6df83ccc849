"""Llama 4 with its image encoder in the Hugging Face format (`model_type: llama4`)."""

from collections.abc import Mapping

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.config_fields import fields_read
from jaxllm.interop.families.common.decoder_axes import decoder_sizes
from jaxllm.interop.families.common.fairscale import split_sizes, without_shards
from jaxllm.interop.families.common.family import Layout, RuleTable
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.llama_like import (
    IGNORED_TENSORS,
    tied_head,
    with_prefix,
)
from jaxllm.interop.families.common.naming.hf_family import hf_family
from jaxllm.interop.families.common.unsupported import refuse
from jaxllm.interop.formats.stored_tensor import StoredTensor

from .llama4_text import SUPPORTED, read_text, text_rules, unsupported, write_text
from .llama4_vision import (
    HF_NAMES,
    IMAGE_TOKEN,
    VISION_SPLIT,
    read_hf_vision,
    unsupported_by_hf_vision,
    vision_rules,
    vision_sizes,
    write_hf_vision,
)

TEXT = "language_model."


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads a `config.json` as transformers 4 or 5 writes it."""
    image_token = fields.take("image_token_index", int, IMAGE_TOKEN)
    with fields.part("text_config", fields_read("llama4_text")) as text:
        config = read_text(text)
    with fields.part("vision_config", fields_read("llama4_vision_model")) as vision:
        config["vision"] = read_hf_vision(vision, image_token)
    # Only the text config's field ties the head.
    fields.require("tie_word_embeddings", False, config["head.tied"])
    return config, Layout()


def write_config(config: DecoderConfig, base: Json) -> Json:
    """Writes a `config.json`. Raises ValueError for what the format does not support."""
    vision = config.vision
    unsupported_by_vision = (
        {"vision=None": True} if vision is None else unsupported_by_hf_vision(vision)
    )
    found = {**unsupported(config), **unsupported_by_vision}
    refuse("model_type 'llama4'", config, (*SUPPORTED, "vision"), found)
    assert vision is not None, "refused above"
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        **{name: value for name, value in base.items() if name != "dtype"},
        "model_type": "llama4",
        "text_config": write_text(config, base.get("text_config") or {}),
        "vision_config": write_hf_vision(config, vision, base.get("vision_config") or {}),
        "image_token_index": vision.image_token,
        "tie_word_embeddings": config.head.tied,
        "torch_dtype": config.numerics.param_dtype,
    }


def table(config: DecoderConfig, layout: Layout) -> RuleTable:
    """Returns the rules for every tensor of Llama 4."""
    rules = [*with_prefix(TEXT, text_rules(config)), *map(without_shards, vision_rules(HF_NAMES))]
    if config.vision is None:
        raise ValueError("vision=None: model_type 'llama4' requires an image encoder")
    sizes = {**decoder_sizes(config), **vision_sizes(config.vision)}
    return RuleTable(
        tuple(rules),
        split_sizes(sizes, 1, VISION_SPLIT),
        tied={TEXT + copy: TEXT + original for copy, original in tied_head(config).items()},
        ignored={TEXT + pattern: why for pattern, why in IGNORED_TENSORS.items()},
    )


LLAMA4 = hf_family("llama4", read_config, write_config, table, prefix="", embeddings=())
