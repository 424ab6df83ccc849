"""ERNIE 4.5: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case, rope

CASES = {
    "ernie4_5": Case("Ernie4_5", written_as="llama"),
    "ernie4_5/biases-untied": Case(
        "Ernie4_5",
        {"use_bias": True, "tie_word_embeddings": False, **rope("linear", factor=3.0)},
        written_as="llama",
    ),
}


class TestErnie45(DecoderFamily):
    cases = CASES
