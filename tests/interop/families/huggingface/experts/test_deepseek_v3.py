"""DeepSeek-V3: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import DEEPSEEK, DEEPSEEK_YARN, Case

CASES = {
    "deepseek_v3": Case(
        "DeepseekV3",
        {**DEEPSEEK, **DEEPSEEK_YARN, "first_k_dense_replace": 1},
        without=("head_dim",),
    ),
    "deepseek_v3/one-group-no-query-latent-halves-biases-tied": Case(
        "DeepseekV3",
        {
            **DEEPSEEK,
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
        without=("head_dim",),
    ),
}


class TestDeepseekV3(DecoderFamily):
    cases = CASES
