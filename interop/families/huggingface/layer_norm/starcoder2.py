"""StarCoder2 in the Hugging Face format: LayerNorm, biases and an MLP without gate, RoPE."""

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import activation, fixed, setting, switch
from jaxllm.interop.families.common.described.rotary import rope, uniform_window
from jaxllm.interop.families.common.described.rules import embedding_rule, mlp_rules, norm_rules
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.llama_like import attention_rules
from jaxllm.interop.rules.rule import Rule

BIASES = ("attention.qkv_bias", "attention.out_bias", "mlp.bias")


def rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Returns the rules for every tensor but the head."""
    theirs, ours = "model.layers.{L}.", "layers.{L}."
    return [
        embedding_rule("model.embed_tokens"),
        *norm_rules(
            config,
            {
                "final_norm": "model.norm",
                ours + "attn_norm": theirs + "input_layernorm",
                ours + "mlp_norm": theirs + "post_attention_layernorm",
            },
        ),
        *attention_rules(config),
        *mlp_rules(config, theirs + "mlp.", "c_fc", "c_proj"),
    ]


STARCODER2 = described_family(
    "starcoder2",
    "Starcoder2ForCausalLM",
    (
        sizes(4096, kv_heads=2),
        setting("norm_epsilon", "norms.eps", float, 1e-5),
        setting("tie_word_embeddings", "head.tied", bool, True),
        switch("use_bias", BIASES, default=True),
        activation("hidden_act", "gelu_pytorch_tanh"),
        fixed({"norms.kind": "layer", "mlp.gated": False}),
        rope(),
        uniform_window(),
    ),
    rules,
)
