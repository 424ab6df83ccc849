"""MiniMax-M2: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

EXPERTS = {"num_local_experts": 5, "num_experts_per_tok": 2}

CASES = {
    "minimax_m2": Case("MiniMaxM2", {**EXPERTS, "rotary_dim": 8}),
    "minimax_m2/whole-heads-tied": Case("MiniMaxM2", {**EXPERTS, "tie_word_embeddings": True}),
}


class TestMiniMaxM2(DecoderFamily):
    cases = CASES
