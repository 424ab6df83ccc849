"""Mixtral: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

EXPERTS = {"num_local_experts": 5, "num_experts_per_tok": 2}

CASES = {
    "mixtral": Case("Mixtral", EXPERTS),
    "mixtral/window-tied-all": Case(
        "Mixtral",
        {
            **EXPERTS,
            "sliding_window": 70,
            "tie_word_embeddings": True,
            "num_experts_per_tok": 5,
            "output_router_logits": True,
            "router_aux_loss_coef": 0.02,
        },
    ),
}


class TestMixtral(DecoderFamily):
    cases = CASES
