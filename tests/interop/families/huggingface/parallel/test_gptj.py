"""GPT-J: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

ALIKE = ("num_key_value_heads", "head_dim", "intermediate_size")

CASES = {
    "gptj": Case("GPTJ", {"rotary_dim": 6, "n_inner": 56}, without=ALIKE),
    "gptj/whole-heads-tied": Case(
        "GPTJ", {"rotary_dim": 8, "tie_word_embeddings": True}, without=ALIKE
    ),
}


class TestGptj(DecoderFamily):
    cases = CASES
