"""OLMoE: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2}

CASES = {
    "olmoe": Case("Olmoe", EXPERTS, without=("head_dim",)),
    "olmoe/normalized-biases-tied": Case(
        "Olmoe",
        {**EXPERTS, "norm_topk_prob": True, "attention_bias": True, "tie_word_embeddings": True},
        without=("head_dim",),
    ),
}


class TestOlmoe(DecoderFamily):
    cases = CASES
