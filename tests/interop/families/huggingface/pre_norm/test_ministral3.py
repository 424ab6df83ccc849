"""Ministral 3: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case, rope

# The temperature rises within the prompt.
YARN = {
    "llama_4_scaling_beta": 0.3,
    "original_max_position_embeddings": 64,
    "factor": 4.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}

CASES = {
    "ministral3": Case("Ministral3", rope("yarn", **YARN)),
    "ministral3/window-tied": Case(
        "Ministral3",
        {
            "sliding_window": 70,
            "tie_word_embeddings": True,
            **rope("default", llama_4_scaling_beta=0.2, original_max_position_embeddings=100),
        },
    ),
}


class TestMinistral3(DecoderFamily):
    cases = CASES
