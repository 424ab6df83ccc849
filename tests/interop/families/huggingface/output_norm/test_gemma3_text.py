"""Gemma 3: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

GEMMA = {"sliding_window": 70, "query_pre_attn_scalar": 40}

CASES = {
    "gemma3_text": Case("Gemma3Text", {**GEMMA, "num_hidden_layers": 8}, "Gemma3ForCausalLM"),
    "gemma3_text/linear-capped": Case(
        "Gemma3Text",
        {
            **GEMMA,
            "num_hidden_layers": 7,
            "sliding_window_pattern": 3,
            "final_logit_softcapping": 2.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 7000.0},
            },
        },
        "Gemma3ForCausalLM",
    ),
    "gemma3_text/irregular-untied-biases": Case(
        "Gemma3Text",
        {
            **GEMMA,
            "layer_types": [f"{kind}_attention" for kind in ("full", "sliding", "sliding", "full")],
            "tie_word_embeddings": False,
            "attention_bias": True,
        },
        "Gemma3ForCausalLM",
    ),
}


class TestGemma3Text(DecoderFamily):
    cases = CASES
