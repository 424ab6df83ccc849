"""BLOOM: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

# Of families without these fields.
ABSENT = ("num_key_value_heads", "head_dim", "intermediate_size", "max_position_embeddings")

CASES = {
    "bloom": Case("Bloom", without=ABSENT),
    "bloom/eight-heads-untied": Case(
        "Bloom", {"num_attention_heads": 8, "tie_word_embeddings": False}, without=ABSENT
    ),
}


class TestBloom(DecoderFamily):
    cases = CASES
