"""GPT-NeoX: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case, rope

# Of families that derive the width of a head, and have a key and a value for each query.
ALIKE = ("num_key_value_heads", "head_dim")

CASES = {
    "gpt_neox": Case("GPTNeoX", without=ALIKE),
    "gpt_neox/serial-tied-half": Case(
        "GPTNeoX",
        {
            "use_parallel_residual": False,
            "tie_word_embeddings": True,
            "hidden_act": "gelu_pytorch_tanh",
            "rotary_pct": 0.5,
            "rotary_emb_base": 25000,
        },
        without=ALIKE,
    ),
    "gpt_neox/no-attention-bias-yarn": Case(
        "GPTNeoX",
        {
            "attention_bias": False,
            **rope(
                "yarn",
                factor=4.0,
                original_max_position_embeddings=128,
                partial_rotary_factor=1.0,
            ),
        },
        without=ALIKE,
    ),
}


class TestGptNeox(DecoderFamily):
    cases = CASES
