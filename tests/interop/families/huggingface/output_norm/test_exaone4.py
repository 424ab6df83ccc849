"""EXAONE 4: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

CASES = {
    "exaone4": Case("Exaone4", {"sliding_window": 70}),
    "exaone4/no-windows-tied": Case(
        "Exaone4",
        {
            "sliding_window": None,
            "layer_types": ["full_attention"] * 4,  # its class needs them if there is no window
            "tie_word_embeddings": True,
        },
    ),
}


class TestExaone4(DecoderFamily):
    cases = CASES
