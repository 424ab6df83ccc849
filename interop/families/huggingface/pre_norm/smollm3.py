"""SmolLM3 in the Hugging Face format: Llama without RoPE on every n-th layer."""

from collections.abc import Mapping

from jaxllm.config import DecoderConfig, LayerKind
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.layer_types import (
    ATTENTION,
    read_layer_types,
    read_nope_layers,
    shortest_pattern,
    unsupported_layers,
    write_layer_types,
    write_nope_layers,
)
from jaxllm.interop.families.common.llama_like import (
    llama_table,
    read_attention_bias,
    read_decoder,
    write_decoder,
)
from jaxllm.interop.families.common.naming.hf_family import hf_family
from jaxllm.interop.families.common.rope import read_rope, write_rope
from jaxllm.interop.families.common.unsupported import refuse, unsupported_by_one_bias
from jaxllm.interop.formats.stored_tensor import StoredTensor

SUPPORTED = (
    *("rope.theta", "rope.scaling", "head.tied", "attention.qkv_bias", "attention.out_bias"),
    *("mlp.bias", "mlp.activation", "attention.window", "pattern"),
)


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads a `config.json` as transformers 4 or 5 writes it."""
    decoder = read_decoder(
        fields,
        num_key_value_heads=4,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )
    config = {
        **decoder,
        **read_rope(fields, default_theta=2000000.0),
        **_read_layers(fields),
        **read_attention_bias(fields),
        "mlp.bias": fields.take("mlp_bias", bool, False),
    }
    return config, Layout()


def _read_layers(fields: Fields) -> Json:
    """Reads the pattern of layers and the window, by default on the layers without RoPE."""
    count = fields.take("num_hidden_layers", int)
    nope = read_nope_layers(fields, count)
    is_used = fields.take("use_sliding_window", bool, False)
    window = fields.take_nullable("sliding_window", int, None)
    window = window if is_used else None
    sliding = nope if window is not None else ()
    types = read_layer_types(
        fields, ["sliding_attention" if i in sliding else "full_attention" for i in range(count)]
    )
    if "sliding_attention" in types and window is None:
        fields.problems.append(
            "layer_types has sliding_attention, but use_sliding_window is not set"
        )
    kinds = [
        LayerKind(attention=ATTENTION[name], rope="none" if i in nope else "global")
        for i, name in enumerate(types)
    ]
    return {
        "attention.window": window if "sliding_attention" in types else None,
        "pattern": shortest_pattern(kinds) or (LayerKind(),),
    }


def write_config(config: DecoderConfig, base: Json) -> Json:
    """Writes a `config.json`. Raises ValueError for what the format does not support."""
    refuse(
        "model_type 'smollm3'",
        config,
        SUPPORTED,
        {
            **unsupported_by_one_bias(config),
            **unsupported_layers(
                config, attention=("full", "window"), rope=("global", "none"), mlp=("dense",)
            ),
        },
    )
    return {
        **write_decoder(config, base, "smollm3", "SmolLM3ForCausalLM"),
        **write_rope(config),
        "attention_bias": config.attention.qkv_bias,
        "mlp_bias": config.mlp.bias,
        "no_rope_layers": write_nope_layers(config),
        "use_sliding_window": config.attention.window is not None,
        "sliding_window": config.attention.window,
        "layer_types": write_layer_types(config),
    }


SMOLLM3 = hf_family("smollm3", read_config, write_config, llama_table)
