"""GPT BigCode (StarCoder) in the Hugging Face format: GPT-2 with one key/value head for all."""

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import (
    Part,
    activation,
    choice,
    fixed,
    required,
    setting,
)
from jaxllm.interop.families.common.described.rules import (
    embedding_rule,
    fused_qkv_rules,
    grouped_qkv_rules,
    mlp_rules,
    norm_rules,
    position_rule,
)
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.torch_modules import linear_rules
from jaxllm.interop.rules.rule import Rule

FIXED = {
    "norms.kind": "layer",
    "positions.kind": "learned",
    "attention.qkv_bias": True,
    "attention.out_bias": True,
    "mlp.gated": False,
    "mlp.bias": True,
}
NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
}
PREFIX = "transformer."


def read_kv_heads(fields: Fields) -> Json:
    """Reads whether all query heads share one key and value."""
    fields.ignore("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32")  # it always is
    is_shared = fields.take("multi_query", bool, True)
    return {"num_kv_heads": 1 if is_shared else fields.take("n_head", int)}


def write_kv_heads(config: DecoderConfig, base: Json) -> Json:
    """Writes the field of `read_kv_heads`."""
    return {"multi_query": config.num_kv_heads == 1}


def other_kv_heads(config: DecoderConfig) -> dict[str, bool]:
    """Flags groups of queries that share keys."""
    kv_heads = config.num_kv_heads
    return {f"num_kv_heads={kv_heads}": kv_heads not in (1, config.num_heads)}


def rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Returns the rules for every tensor but the head."""
    theirs, ours = PREFIX + "h.{L}.", "layers.{L}."
    fused = grouped_qkv_rules if config.num_kv_heads == 1 else fused_qkv_rules
    return [
        embedding_rule(PREFIX + "wte"),
        position_rule(PREFIX + "wpe"),
        *norm_rules(
            config,
            {
                "final_norm": PREFIX + "ln_f",
                ours + "attn_norm": theirs + "ln_1",
                ours + "mlp_norm": theirs + "ln_2",
            },
        ),
        *fused(config, theirs + "attn.c_attn"),
        *linear_rules(theirs + "attn.c_proj", ours + "attn.o_proj", "D", "(N H)", bias=True),
        *mlp_rules(config, theirs + "mlp.", "c_fc", "c_proj"),
    ]


GPT_BIGCODE = described_family(
    "gpt_bigcode",
    "GPTBigCodeForCausalLM",
    (
        sizes(1024, has_head_dim=False, has_kv_heads=False, has_mlp_dim=False, names=NAMES),
        Part(read_kv_heads, write_kv_heads, unsupported=other_kv_heads),
        setting("layer_norm_epsilon", "norms.eps", float, 1e-5),
        choice("scale_attn_weights", "attention.scale", {True: None, False: 1.0}, default=True),
        setting("tie_word_embeddings", "head.tied", bool, True),
        activation("activation_function", "gelu_pytorch_tanh"),
        required("add_cross_attention", False),
        fixed(FIXED),
    ),
    rules,
    axes=lambda config: {"M": config.max_len, "P": 3, "g": config.num_heads},
    prefix=PREFIX,
    embedding="wte.weight",
)
