"""Qwen 2: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

CASES = {
    "qwen2": Case("Qwen2"),
    "qwen2/late-windows-tied": Case(
        "Qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 90,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2/alternating": Case(
        "Qwen2",
        {
            "num_hidden_layers": 5,
            "use_sliding_window": True,
            "sliding_window": 90,
            "layer_types": ["full_attention", "sliding_attention"] * 2 + ["full_attention"],
        },
    ),
}


class TestQwen2(DecoderFamily):
    cases = CASES
