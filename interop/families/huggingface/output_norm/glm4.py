"""GLM 4 (2025) in the Hugging Face format: GLM with norms on the outputs of sublayers as well."""

from functools import partial

from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import fixed

from .glm import NORMS, PARTS, rules

OUTPUTS = {"attn_out_norm": "post_self_attn_layernorm", "mlp_out_norm": "post_mlp_layernorm"}

GLM4 = described_family(
    "glm4",
    "Glm4ForCausalLM",
    (*PARTS, fixed({"norms.placement": "sandwich"})),
    partial(rules, norms={**NORMS, **OUTPUTS}),
)
