"""DeepSeek-V2 in the Hugging Face format: latent attention, and experts of the best groups.

DeepSeek-AI, 2024, "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language
Model".
"""

from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.latent import latent_axes, latent_rope, latent_sizes
from jaxllm.interop.families.common.described.part import activation, required, setting, switch
from jaxllm.interop.families.common.described.sparse import Sparse
from jaxllm.interop.families.common.experts import read_expert_layout

from .deepseek_v3 import rules

SPARSE = Sparse(
    fixed={"scores": "softmax", "correction_bias": False, "router_in_float32": True},
    num_experts=64,
    top_k=None,
    mlp_dim=1407,
    num_shared=2,
    weight_scale=1.0,
    num_dense=0,
    normalize=None,
    groups=(1, 1),
    methods={"greedy": None, "group_limited_greedy": "best"},
)

DEEPSEEK_V2 = described_family(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    (
        latent_sizes(2048),
        setting("rms_norm_eps", "norms.eps", float, 1e-6),
        setting("tie_word_embeddings", "head.tied", bool, False),
        switch("attention_bias", ("attention.qkv_bias", "attention.out_bias"), default=False),
        required("mlp_bias", False),
        activation("hidden_act", "silu"),
        latent_rope(is_interleaved=True),
        SPARSE.part,
    ),
    rules,
    read_layout=read_expert_layout,
    axes=latent_axes,
)
