"""BLOOM in the Hugging Face format: ALiBi, and a norm of the embeddings."""

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import Part, fixed, required, setting
from jaxllm.interop.families.common.described.rules import (
    embedding_rule,
    fused_qkv_rules,
    mlp_rules,
    norm_rules,
)
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.torch_modules import linear_rules
from jaxllm.interop.rules.rule import Rule

FIXED = {
    "norms.kind": "layer",
    "norms.embed": True,
    "positions.kind": "alibi",
    "attention.qkv_bias": True,
    "attention.out_bias": True,
    "mlp.activation": "gelu_tanh",
    "mlp.gated": False,
    "mlp.bias": True,
}
NAMES = {
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "",
    "max_position_embeddings": "",
}
PREFIX = "transformer."
UNLIKE = {
    PREFIX + "h.*.self_attention": "it adds the residual stream",
    PREFIX + "h.*.mlp": "it adds the residual stream",
    PREFIX + "h.*.self_attention@scores": "biases count from the first key, not from the query",
}


def ignore_slices(fields: Fields) -> Json:
    """Ignores how training sliced products, which transformers can imitate bit by bit."""
    fields.ignore("pretraining_tp", "slow_but_exact")
    return {}


def rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Returns the rules for every tensor but the head; P counts queries, keys and values."""
    theirs, ours = PREFIX + "h.{L}.", "layers.{L}."
    attention = theirs + "self_attention."
    return [
        embedding_rule(PREFIX + "word_embeddings"),
        *norm_rules(
            config,
            {
                "embed_norm": PREFIX + "word_embeddings_layernorm",
                "final_norm": PREFIX + "ln_f",
                ours + "attn_norm": theirs + "input_layernorm",
                ours + "mlp_norm": theirs + "post_attention_layernorm",
            },
        ),
        *fused_qkv_rules(config, attention + "query_key_value"),
        *linear_rules(attention + "dense", ours + "attn.o_proj", "D", "(N H)", bias=True),
        *mlp_rules(config, theirs + "mlp.", "dense_h_to_4h", "dense_4h_to_h"),
    ]


BLOOM = described_family(
    "bloom",
    "BloomForCausalLM",
    (
        sizes(
            2048,
            has_head_dim=False,
            has_kv_heads=False,
            is_multi_head=True,
            has_mlp_dim=False,
            names=NAMES,
            old_width="n_embed",
        ),
        setting("layer_norm_epsilon", "norms.eps", float, 1e-5),
        setting("tie_word_embeddings", "head.tied", bool, True),
        required("apply_residual_connection_post_layernorm", False),
        Part(ignore_slices),
        fixed(FIXED),
    ),
    rules,
    axes=lambda config: {"P": 3},
    unlike=UNLIKE,
    prefix=PREFIX,
    embedding="word_embeddings.weight",
)
