"""Phi-3: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case, longrope

CASES = {
    "phi3": Case("Phi3", {"pad_token_id": 0}, written_as="llama"),
    "phi3/window-tied": Case(
        "Phi3",
        {"pad_token_id": 0, "sliding_window": 90, "tie_word_embeddings": True},
        written_as="mistral",
    ),
    "phi3/partial": Case(
        "Phi3", {"pad_token_id": 0, "partial_rotary_factor": 0.75, "sliding_window": 90}
    ),
    "phi3/longrope-below": Case(
        "Phi3",
        {
            "pad_token_id": 0,
            "hidden_size": 96,
            "original_max_position_embeddings": 320,
            **longrope(320, 6, partial_rotary_factor=0.75),
        },
    ),
    "phi3/longrope-beyond": Case(
        "Phi3",
        {
            "pad_token_id": 0,
            "hidden_size": 96,
            "original_max_position_embeddings": 64,
            "partial_rotary_factor": 0.5,
            **longrope(64, 4, partial_rotary_factor=0.5),
            "sliding_window": 100,
        },
    ),
}


class TestPhi3(DecoderFamily):
    cases = CASES
