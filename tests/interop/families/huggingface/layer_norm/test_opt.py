"""OPT: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

# Of families that derive the width of a head, and have a key and a value for each query.
ALIKE = ("num_key_value_heads", "head_dim", "intermediate_size")

CASES = {
    "opt": Case("OPT", {"ffn_dim": 56}, without=ALIKE),
    "opt/after-untied": Case(
        "OPT",
        {"ffn_dim": 56, "do_layer_norm_before": False, "tie_word_embeddings": False},
        without=ALIKE,
    ),
    "opt/bare-no-biases-gelu": Case(
        "OPT",
        {
            "ffn_dim": 56,
            "layer_norm_elementwise_affine": False,
            "enable_bias": False,
            "activation_function": "gelu",
            "_remove_final_layer_norm": True,
        },
        without=ALIKE,
    ),
}


class TestOpt(DecoderFamily):
    cases = CASES
