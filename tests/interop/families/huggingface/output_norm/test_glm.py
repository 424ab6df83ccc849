"""GLM: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case, rope

CASES = {
    "glm": Case("Glm", {"pad_token_id": None}),
    "glm/most-of-heads-tied": Case(
        "Glm",
        {
            "pad_token_id": None,
            "attention_bias": False,
            "tie_word_embeddings": True,
            **rope("default", partial_rotary_factor=0.75),
        },
    ),
}


class TestGlm(DecoderFamily):
    cases = CASES
