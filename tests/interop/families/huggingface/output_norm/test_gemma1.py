"""Gemma 1: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

CASES = {
    "gemma": Case("Gemma"),
    "gemma/untied-biases": Case(
        "Gemma", {"tie_word_embeddings": False, "attention_bias": True, "hidden_act": "gelu"}
    ),
}


class TestGemma1(DecoderFamily):
    cases = CASES
