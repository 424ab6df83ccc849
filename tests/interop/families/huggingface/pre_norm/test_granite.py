"""Granite: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

SCALES = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.1,
    "logits_scaling": 8.0,
}

CASES = {
    "granite": Case("Granite", SCALES),
    "granite/biases-tied": Case(
        "Granite",
        {**SCALES, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
}


class TestGranite(DecoderFamily):
    cases = CASES
