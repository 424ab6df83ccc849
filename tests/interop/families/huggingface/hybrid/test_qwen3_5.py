"""Qwen3.5's text model: logits equal those of transformers; weights and config round-trip."""

from decoder_family import DecoderFamily
from hf_case import DELTA, Case

CASES = {
    "qwen3_5_text": Case(
        "Qwen3_5",
        {
            **DELTA,
            "rope_parameters": {
                **{"rope_type": "default", "rope_theta": 20000.0},
                **{"partial_rotary_factor": 0.25, "mrope_section": [1, 1, 0]},
                "mrope_interleaved": True,
            },
        },
        config_class="Qwen3_5TextConfig",
    ),
    "qwen3_5_text/biases-tied": Case(
        "Qwen3_5",
        {
            **DELTA,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        },
        config_class="Qwen3_5TextConfig",
    ),
}


class TestQwen35(DecoderFamily):
    cases = CASES
