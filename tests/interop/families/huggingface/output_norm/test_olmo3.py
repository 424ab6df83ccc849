"""OLMo 3: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

CASES = {
    "olmo3": Case("Olmo3", {"sliding_window": 70}),
    "olmo3/yarn-biases-tied": Case(
        "Olmo3",
        {
            "sliding_window": 70,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn",
                    "rope_theta": 500000.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 128,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
            },
        },
    ),
}


class TestOlmo3(DecoderFamily):
    cases = CASES
