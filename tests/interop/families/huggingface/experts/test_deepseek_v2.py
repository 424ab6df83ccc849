"""DeepSeek-V2: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import DEEPSEEK, DEEPSEEK_YARN, Case

CASES = {
    "deepseek_v2": Case(
        "DeepseekV2",
        {
            **DEEPSEEK,
            **DEEPSEEK_YARN,
            "topk_method": "group_limited_greedy",
            "routed_scaling_factor": 16.0,
            "first_k_dense_replace": 1,
        },
        without=("head_dim",),
    ),
    "deepseek_v2/greedy-no-query-latent-tied": Case(
        "DeepseekV2",
        {
            **DEEPSEEK,
            "q_lora_rank": None,
            "topk_method": "greedy",
            "tie_word_embeddings": True,
            "attention_bias": True,
        },
        without=("head_dim",),
    ),
}


class TestDeepseekV2(DecoderFamily):
    cases = CASES
