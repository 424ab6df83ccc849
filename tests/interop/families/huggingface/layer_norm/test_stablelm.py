"""StableLM: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case, rope

CASES = {
    "stablelm": Case("StableLm", without=("head_dim",)),
    "stablelm/parallel-head-norms-biases": Case(
        "StableLm",
        {
            "use_parallel_residual": True,
            "qk_layernorm": True,
            "use_qkv_bias": True,
            **rope("default", partial_rotary_factor=0.5),
        },
        without=("head_dim",),
    ),
}


class TestStablelm(DecoderFamily):
    cases = CASES
