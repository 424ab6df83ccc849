"""Gemma 2: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

GEMMA = {"sliding_window": 70, "query_pre_attn_scalar": 40}

CASES = {
    "gemma2": Case("Gemma2", GEMMA),
    "gemma2/odd-uncapped-untied": Case(
        "Gemma2",
        {
            **GEMMA,
            "num_hidden_layers": 5,
            "final_logit_softcapping": None,
            "attn_logit_softcapping": None,
            "tie_word_embeddings": False,
            "attention_bias": True,
        },
    ),
    "gemma2/irregular": Case(
        "Gemma2",
        {
            **GEMMA,
            "layer_types": [f"{kind}_attention" for kind in ("full", "sliding", "sliding", "full")],
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 2.0,
        },
    ),
    "gemma2/no-windows": Case(
        "Gemma2", {"layer_types": ["full_attention"] * 4, "query_pre_attn_scalar": 16}
    ),
}


class TestGemma2(DecoderFamily):
    cases = CASES
