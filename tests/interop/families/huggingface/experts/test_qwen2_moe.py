"""Qwen2 MoE: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

EXPERTS = {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 24,
}

CASES = {
    "qwen2_moe": Case("Qwen2Moe", EXPERTS),
    "qwen2_moe/some-dense-windows-tied": Case(
        "Qwen2Moe",
        {
            **EXPERTS,
            "mlp_only_layers": [1],
            "norm_topk_prob": True,
            "qkv_bias": False,
            "use_sliding_window": True,
            "sliding_window": 70,
            "max_window_layers": 2,
            "tie_word_embeddings": True,
        },
    ),
}


class TestQwen2Moe(DecoderFamily):
    cases = CASES
