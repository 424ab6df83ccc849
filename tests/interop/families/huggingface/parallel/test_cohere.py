"""Cohere: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

CASES = {
    "cohere": Case("Cohere"),
    "cohere/head-norms-biases-untied": Case(
        "Cohere",
        {
            "use_qk_norm": True,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "logit_scale": 0.25,
        },
    ),
}


class TestCohere(DecoderFamily):
    cases = CASES
