"""Phi: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case, rope

CASES = {
    "phi": Case("Phi", without=("head_dim",)),
    "phi/norms-tied": Case(
        "Phi",
        {
            "qk_layernorm": True,
            "tie_word_embeddings": True,
            **rope("default", partial_rotary_factor=0.25),
        },
        without=("head_dim",),
    ),
}


class TestPhi(DecoderFamily):
    cases = CASES
