"""Qwen 3: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

CASES = {
    "qwen3": Case("Qwen3"),
    "qwen3/tied-biases": Case("Qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
}


class TestQwen3(DecoderFamily):
    cases = CASES
