"""GLM-4.5 in the Hugging Face format: experts as in DeepSeek-V3, and half of each head is rotated.

Layers that predict further tokens are carried along as they are.
"""

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import activation, choice, setting
from jaxllm.interop.families.common.described.rotary import rope
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.described.sparse import Sparse, sparse_rules
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.llama_like import attention_rules, end_rules, norm_rules
from jaxllm.interop.rules.rule import Rule

from .deepseek_v3 import SPARSE, carried, read_layout

EXPERTS = Sparse(
    fixed=SPARSE.fixed,
    num_experts=128,
    top_k=8,
    mlp_dim=1408,
    num_shared=1,
    weight_scale=1.0,
    num_dense=1,
    normalize=True,
    groups=(1, 1),
)


def rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Returns the rules for every tensor but the head."""
    return [
        *end_rules(),
        *norm_rules(attn_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        *attention_rules(config),
        *sparse_rules(config, layout),
    ]


GLM4_MOE = described_family(
    "glm4_moe",
    "Glm4MoeForCausalLM",
    (
        sizes(131072, kv_heads=8),
        setting("rms_norm_eps", "norms.eps", float, 1e-5),
        setting("tie_word_embeddings", "head.tied", bool, False),
        setting("attention_bias", "attention.qkv_bias", bool, False),
        choice("use_qk_norm", "attention.qk_norm", {False: "none", True: "head"}, default=False),
        activation("hidden_act", "silu"),
        rope(fraction=0.5),
        EXPERTS.part,
    ),
    rules,
    read_layout=read_layout,
    carried=carried,
)
