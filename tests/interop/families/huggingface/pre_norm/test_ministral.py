"""Ministral: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

MIXED = [f"{kind}_attention" for kind in ("full", "sliding", "sliding", "full")]

CASES = {
    "ministral": Case(
        "Ministral", {"sliding_window": 70, "layer_types": MIXED}, written_as="smollm3"
    ),
    "ministral/all-slide-tied": Case(
        "Ministral", {"sliding_window": 70, "tie_word_embeddings": True}, written_as="mistral"
    ),
}


class TestMinistral(DecoderFamily):
    cases = CASES
