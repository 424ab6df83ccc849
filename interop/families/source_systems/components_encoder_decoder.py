"""`EncoderDecoder` of the components system (`model_type: components-encoder-decoder`)."""

from collections.abc import Mapping
from typing import Any

from jaxllm.config import SequenceToSequenceConfig
from jaxllm.interop.families.common.encoder_decoder import refuse_both
from jaxllm.interop.families.common.family import Derived, Family, Layout, RuleTable
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.torch_modules import linear_rules, sinusoids
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.rule import Rule

from .components import (
    SUPPORTED,
    from_the_start,
    layer_rules,
    layer_sizes,
    read_layers,
    reference_arguments,
    unsupported,
    write_layers,
)


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads the constructor's arguments; `apply_causal_mask` applies to the decoder."""
    both, width = read_layers(fields), fields.take("input_dim", int)
    decoder = {
        "num_layers": fields.take("num_decoder_layers", int),
        "attention.causal": fields.take("apply_causal_mask", bool, True),
        "attention.cross": True,
        "input_dim": width,
        "output_dim": fields.take("output_dim", int),
    }
    config = {
        "encoder": {
            **both,
            "num_layers": fields.take("num_encoder_layers", int),
            "attention.causal": False,
        },
        "decoder": {**both, **decoder},
        "source_dim": width,
    }
    return config, Layout()


def write_config(config: SequenceToSequenceConfig, base: Json) -> Json:
    """Writes the constructor's arguments. Raises ValueError for what they do not support."""
    encoder, decoder = config.encoder, config.decoder
    refuse_both(
        "the components' EncoderDecoder",
        config,
        *SUPPORTED,
        decoder=("input_dim", "output_dim"),
        may_differ=("num_layers",),
        unsupported={
            f"source_dim={config.source_dim} with input_dim={decoder.input_dim}": (
                config.source_dim != decoder.input_dim
            ),
            **unsupported(decoder),
        },
    )
    return {
        **base,
        "model_type": "components-encoder-decoder",
        "input_dim": decoder.input_dim,
        "num_encoder_layers": encoder.num_layers,
        "num_decoder_layers": decoder.num_layers,
        "output_dim": decoder.output_dim,
        "apply_causal_mask": decoder.attention.causal,
        **write_layers(decoder, base),
    }


def table(config: SequenceToSequenceConfig, layout: Layout) -> RuleTable:
    """Returns the rules for every tensor of the state dict."""
    encoder, decoder = config.encoder, config.decoder
    rules: list[Rule] = [
        *linear_rules("encoder_input_proj", "source_proj", "D", "I", bias=True),
        *linear_rules("decoder_input_proj", "decoder.input_proj", "D", "I", bias=True),
        *layer_rules("encoder_layers.{A}", "encoder.layers.{A}", encoder),
        *layer_rules(
            "decoder_layers.{L}",
            "decoder.layers.{L}",
            decoder,
            attn="self_attention",
            norm="layer_norm",
        ),
        *linear_rules("out_proj", "decoder.output_proj", "O", "D", bias=True),
    ]
    sizes = {
        "I": decoder.input_dim,
        "O": decoder.output_dim,
        "A": encoder.num_layers,
        "L": decoder.num_layers,
        **layer_sizes(decoder),
    }
    derived = (
        Derived("encoder_pe.pe", lambda: sinusoids(encoder)[None]),
        Derived("decoder_pe.pe", lambda: sinusoids(decoder)[None]),
    )
    return RuleTable(tuple(rules), sizes, derived=derived)


def reference(fields: Json) -> Any:
    """Builds the PyTorch reference."""
    from jaxllm.interop.reference.components.models import EncoderDecoder

    return EncoderDecoder(**reference_arguments(fields))


COMPONENTS_ENCODER_DECODER = Family(
    name="components-encoder-decoder",
    format="components",
    config_file="config.json",
    model_type="components-encoder-decoder",
    read_config=read_config,
    write_config=write_config,
    table=table,
    config_class=SequenceToSequenceConfig,
    reference=reference,
    arguments=from_the_start,
)
