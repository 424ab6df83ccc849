"""Kimi-K2 in the Hugging Face format: a DeepSeek-V3 by another `model_type`.

Moonshot AI, 2025, "Kimi K2". Its files bring code of their own, which is DeepSeek-V3's; what is
written back keeps the names of both.
"""

from jaxllm.interop.families.common.described.part import required

from .deepseek_v3 import like_deepseek_v3

KIMI_K2 = like_deepseek_v3(
    "kimi_k2",
    required("scoring_func", "sigmoid"),
    required("topk_method", "noaux_tc"),
    required("moe_layer_freq", 1),
    read_by="deepseek_v3",
)
