"""Qwen3 MoE: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

QWEN_EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

CASES = {
    "qwen3_moe": Case("Qwen3Moe", QWEN_EXPERTS),
    "qwen3_moe/every-other-tied-biases": Case(
        "Qwen3Moe",
        {
            **QWEN_EXPERTS,
            "num_hidden_layers": 5,
            "decoder_sparse_step": 2,
            "norm_topk_prob": True,
            "tie_word_embeddings": True,
            "attention_bias": True,
        },
    ),
    "qwen3_moe/some-dense-windows": Case(
        "Qwen3Moe",
        {
            **QWEN_EXPERTS,
            "mlp_only_layers": [0, 3],
            "use_sliding_window": True,
            "sliding_window": 80,
            "num_experts_per_tok": 1,
        },
    ),
}


class TestQwen3Moe(DecoderFamily):
    cases = CASES
