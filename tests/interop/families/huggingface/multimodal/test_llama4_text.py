"""Llama 4 for text: logits equal transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import LLAMA4, Case

CASES = {
    "llama4_text": Case("Llama4Text", LLAMA4, "Llama4ForCausalLM"),
    "llama4_text/irregular": Case(
        "Llama4Text",
        {
            **LLAMA4,
            "moe_layers": [0, 3],
            "no_rope_layers": [1, 0, 0, 1],
            "layer_types": [f"{kind}_attention" for kind in ("full", "chunked", "full", "chunked")],
            "attention_bias": True,
            "use_qk_norm": False,
            "tie_word_embeddings": True,
            "num_experts_per_tok": 1,
        },
        "Llama4ForCausalLM",
    ),
    "llama4_text/dense": Case(
        "Llama4Text",
        {**LLAMA4, "moe_layers": [], "attn_temperature_tuning": False, "rope_parameters": None},
        "Llama4ForCausalLM",
    ),
}


class TestLlama4Text(DecoderFamily):
    cases = CASES
