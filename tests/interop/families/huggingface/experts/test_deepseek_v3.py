"""DeepSeek-V3: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case, rope

LATENT = {
    "num_key_value_heads": 6,
    "q_lora_rank": 20,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
}
EXPERTS = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "n_group": 4,
    "topk_group": 2,
}
YARN = rope("yarn", factor=8.0, original_max_position_embeddings=64, mscale=1.0, mscale_all_dim=0.7)
WITHOUT = ("head_dim",)

CASES = {
    "deepseek_v3": Case(
        "DeepseekV3", {**LATENT, **EXPERTS, **YARN, "first_k_dense_replace": 1}, without=WITHOUT
    ),
    "deepseek_v3/one-group-no-query-latent-halves-biases-tied": Case(
        "DeepseekV3",
        {
            **LATENT,
            **EXPERTS,
            "q_lora_rank": None,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 2,
            "routed_scaling_factor": 1.3,
            "norm_topk_prob": False,
            "first_k_dense_replace": 2,
            "rope_interleave": False,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
        without=WITHOUT,
    ),
}


class TestDeepseekV3(DecoderFamily):
    cases = CASES
