"""nima's `TransformerModel` (`model_type: nima-transformer`): an encoder and a decoder.

The original derives its masks from `pad_idx`; here callers pass `src_segment_ids` instead.
"""

import math
from collections.abc import Mapping
from typing import Any

from jaxllm.config import EncoderDecoderConfig
from jaxllm.errors import UserError
from jaxllm.interop.families.common.encoder_decoder import refuse_both
from jaxllm.interop.families.common.family import Family, Layout, RuleTable, without_type
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.llama_like import layer_norm_rules
from jaxllm.interop.families.common.torch_modules import linear_rules
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.rule import Rule

from .nima import SUPPORTED, layer_rules, layer_sizes, read_layers, unsupported, waves, write_layers

POSITIONS = ("sinusoidal", "learned", "rope", "alibi", "relative")


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads the constructor's arguments."""
    fields.ignore("pad_idx")
    both = read_layers(fields, POSITIONS)
    both["embed_scale"] = math.sqrt(both["embed_dim"])
    both["norms.final"] = both["norms.placement"] == "pre"
    is_shared = both["positions.kind"] == "learned"
    encoder = {**both, "positions.kind": "none"} if is_shared else both
    decoder = {
        "num_layers": fields.take("n_decoder_layers", int),
        "attention.cross": True,
        "vocab_size": fields.take("tgt_vocab_size", int),
        "head.tied": fields.take("tie_weights", bool, False),
        "head.bias": True,
    }
    config = {
        "encoder": {
            **encoder,
            "num_layers": fields.take("n_encoder_layers", int),
            "attention.causal": False,
        },
        "decoder": {**both, **decoder},
        "source_vocab_size": fields.take("src_vocab_size", int),
        "share_positions": is_shared,
    }
    return config, Layout()


def write_config(config: EncoderDecoderConfig, base: Json) -> Json:
    """Writes the constructor's arguments. Raises ValueError for what they do not support."""
    encoder, decoder = config.encoder, config.decoder
    is_shared = decoder.positions.kind == "learned"
    positions = "none" if is_shared else decoder.positions.kind
    refuse_both(
        "nima's TransformerModel",
        config,
        *(*SUPPORTED, "embed_scale"),
        decoder=("head.tied", "head.bias"),
        may_differ=("num_layers", "positions.kind"),
        unsupported={
            **unsupported(decoder, POSITIONS),
            f"encoder.positions.kind={encoder.positions.kind!r}": (
                encoder.positions.kind != positions
            ),
            f"share_positions={config.share_positions}": config.share_positions != is_shared,
            (
                f"dropout={encoder.dropout} in the encoder and {decoder.dropout} in the decoder"
            ): encoder.dropout != decoder.dropout,
            f"init.kind={encoder.init.kind!r} in the encoder and {decoder.init.kind!r} in the "
            "decoder": (encoder.init.kind != decoder.init.kind),
            f"embed_scale={decoder.embed_scale}": (
                decoder.embed_scale != math.sqrt(decoder.embed_dim)
            ),
            f"norms.final={decoder.norms.final} with norms.placement={decoder.norms.placement!r}": (
                decoder.norms.final != (decoder.norms.placement == "pre")
            ),
            "head.bias=False": not decoder.head.bias,
            "source_vocab_size=None": config.source_vocab_size is None,
            f"start_token={config.start_token}": config.start_token is not None,
        },
    )
    is_default = not decoder.head.tied and "tie_weights" not in base
    return {
        **base,
        "model_type": "nima-transformer",
        "src_vocab_size": config.source_vocab_size,
        "tgt_vocab_size": decoder.vocab_size,
        "n_encoder_layers": encoder.num_layers,
        "n_decoder_layers": decoder.num_layers,
        **write_layers(decoder, base, POSITIONS),
        **({} if is_default else {"tie_weights": decoder.head.tied}),
    }


def table(config: EncoderDecoderConfig, layout: Layout) -> RuleTable:
    """Returns the rules for every tensor of the state dict, which also stores a tied head."""
    encoder, decoder = config.encoder, config.decoder
    head = "output_projection"
    rules = [
        Rule("src_embedding.weight : W D", "source_embed.embedding : W D"),
        *layer_rules("encoder_layers.{A}", "encoder.layers.{A}", encoder),
        *layer_rules("decoder_layers.{L}", "decoder.layers.{L}", decoder),
        Rule(f"{head}.bias : V", "decoder.head_bias : V"),
    ]
    if decoder.head.tied:
        both = f"{{C=tgt_embedding|{head}}}.weight : V D"
        rules.append(Rule(both, "decoder.embed.embedding : V D", replicated="C"))
    else:
        rules.append(Rule("tgt_embedding.weight : V D", "decoder.embed.embedding : V D"))
        rules += linear_rules(head, "decoder.lm_head", "V", "D")
    if config.share_positions:
        rules.append(Rule("pos_embedding.weight : M D", "decoder.embed_position.embedding : M D"))
    if decoder.norms.final:
        rules += layer_norm_rules("encoder_norm", "encoder.final_norm")
        rules += layer_norm_rules("decoder_norm", "decoder.final_norm")
    sizes = {
        "W": config.source_vocab_size or 0,
        "V": decoder.vocab_size,
        "A": encoder.num_layers,
        "L": decoder.num_layers,
        "C": 2,
        **layer_sizes(decoder),
    }
    return RuleTable(tuple(rules), sizes, derived=waves(decoder))


def reference(fields: Json) -> Any:
    """Builds the PyTorch reference."""
    from jaxllm.interop.reference.nima.models import TransformerModel

    return TransformerModel(**without_type(fields))


def arguments(model: Any, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the reference's arguments: source, with `pad_idx` as padding, and target.

    Raises UserError if `pad_idx` occurs in the source as a real token, which would be masked.
    """
    source, mask = given["source"], given.get("source_mask")
    is_padding = source.new_zeros(source.shape, dtype=bool) if mask is None else mask == 0
    if bool(((source == model.pad_idx) & ~is_padding).any()):
        raise UserError(
            f"the source contains token {model.pad_idx}, which this model reserves for padding"
        )
    return source.masked_fill(is_padding, model.pad_idx), given["target"]


NIMA_TRANSFORMER = Family(
    name="nima-transformer",
    format="nima",
    config_file="config.json",
    model_type="nima-transformer",
    read_config=read_config,
    write_config=write_config,
    table=table,
    config_class=EncoderDecoderConfig,
    reference=reference,
    arguments=arguments,
    masks=("source_mask",),
)
