"""SmolLM 3: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

CASES = {
    "smollm3": Case("SmolLM3", {"pad_token_id": 0, "num_hidden_layers": 6}),
    "smollm3/windows-biases": Case(
        "SmolLM3",
        {
            "pad_token_id": 0,
            "num_hidden_layers": 5,
            "no_rope_layer_interval": 3,
            "use_sliding_window": True,
            "sliding_window": 60,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "smollm3/irregular": Case(
        "SmolLM3",
        {
            "pad_token_id": 0,
            "no_rope_layers": [1, 0, 0, 1, 1, 0],
            "use_sliding_window": True,
            "sliding_window": 60,
            "layer_types": [f"{kind}_attention" for kind in ("full", "full", "sliding", "sliding")],
        },
    ),
}


class TestSmollm3(DecoderFamily):
    cases = CASES
