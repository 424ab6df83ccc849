"""gpt-oss: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case, rope

EXPERTS = {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 70}

CASES = {
    "gpt_oss": Case("GptOss", EXPERTS),
    "gpt_oss/irregular-tied-unscaled": Case(
        "GptOss",
        {
            **EXPERTS,
            **rope("default"),
            "layer_types": [
                *("full_attention", "full_attention", "sliding_attention", "full_attention"),
            ],
            "attention_bias": False,
            "tie_word_embeddings": True,
            "swiglu_limit": 0.1,
            "swiglu_alpha": 1.3,
        },
    ),
}


class TestGptOss(DecoderFamily):
    cases = CASES
