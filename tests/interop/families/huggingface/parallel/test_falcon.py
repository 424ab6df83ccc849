"""Falcon: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case, rope

ABSENT = ("num_key_value_heads", "head_dim", "intermediate_size")

CASES = {
    "falcon": Case("Falcon", {"ffn_hidden_size": 56}, without=ABSENT),
    "falcon/grouped-two-norms": Case(
        "Falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True, "activation": "relu"},
        without=ABSENT,
    ),
    "falcon/grouped-one-norm": Case(
        "Falcon",
        {
            "new_decoder_architecture": True,
            "num_kv_heads": 3,
            "num_ln_in_parallel_attn": 1,
            **rope("linear", factor=2.0),
        },
        without=ABSENT,
    ),
    "falcon/serial-many-keys-biases": Case(
        "Falcon",
        {"multi_query": False, "parallel_attn": False, "bias": True, "tie_word_embeddings": False},
        without=ABSENT,
    ),
}


class TestFalcon(DecoderFamily):
    cases = CASES
