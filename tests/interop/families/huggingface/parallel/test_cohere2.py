"""Cohere 2: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

CASES = {
    "cohere2": Case("Cohere2", {"sliding_window": 70}),
    "cohere2/irregular-biases": Case(
        "Cohere2",
        {
            "sliding_window": 70,
            "attention_bias": True,
            "layer_types": [f"{kind}_attention" for kind in ("full", "sliding", "sliding", "full")],
        },
    ),
}


class TestCohere2(DecoderFamily):
    cases = CASES
