"""GLM-4.5: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

EXPERTS = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40}

CASES = {
    "glm4_moe": Case("Glm4Moe", {**EXPERTS, "use_qk_norm": True, "routed_scaling_factor": 2.5}),
    "glm4_moe/groups-biases-tied": Case(
        "Glm4Moe",
        {
            **EXPERTS,
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 2,
            "first_k_dense_replace": 2,
            "norm_topk_prob": False,
            "partial_rotary_factor": 0.25,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
}


class TestGlm4Moe(DecoderFamily):
    cases = CASES
