"""Mistral: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

CASES = {
    "mistral": Case("Mistral", {"sliding_window": 100}),
    "mistral/no-window-tied": Case(
        "Mistral",
        {"sliding_window": None, "head_dim": None, "tie_word_embeddings": True},
        written_as="llama",
    ),
}


class TestMistral(DecoderFamily):
    cases = CASES
