"""GPT BigCode: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

ALIKE = ("num_key_value_heads", "head_dim", "intermediate_size")

CASES = {
    "gpt_bigcode": Case("GPTBigCode", {"n_inner": 56}, without=ALIKE),
    "gpt_bigcode/many-keys-unscaled-untied": Case(
        "GPTBigCode",
        {"multi_query": False, "scale_attn_weights": False, "tie_word_embeddings": False},
        without=ALIKE,
        written_as="gpt2",
    ),
}


class TestGptBigcode(DecoderFamily):
    cases = CASES
