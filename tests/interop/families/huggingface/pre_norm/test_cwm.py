"""CWM: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case, rope

LLAMA3 = rope(
    "llama3",
    factor=16.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
CASES = {
    "cwm": Case("Cwm", {"sliding_window": 70, **LLAMA3}, written_as="smollm3"),
    "cwm/irregular-biases": Case(
        "Cwm",
        {
            "sliding_window": 70,
            "mlp_bias": True,
            "layer_types": [f"{kind}_attention" for kind in ("full", "sliding", "sliding", "full")],
            **LLAMA3,
        },
        written_as="smollm3",
    ),
}


class TestCwm(DecoderFamily):
    cases = CASES
