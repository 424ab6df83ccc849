"""OLMo 2: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

CASES = {
    "olmo2": Case("Olmo2"),
    "olmo2/tied-biases": Case("Olmo2", {"tie_word_embeddings": True, "attention_bias": True}),
}


class TestOlmo2(DecoderFamily):
    cases = CASES
