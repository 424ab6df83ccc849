"""OLMo 1: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

CASES = {
    "olmo": Case("Olmo", {"pad_token_id": None, "eos_token_id": 1}),
    "olmo/biases-tied": Case(
        "Olmo",
        {
            "pad_token_id": None,
            "eos_token_id": 1,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
}


class TestOlmo(DecoderFamily):
    cases = CASES
