"""GPT-Neo: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

ALIKE = ("num_key_value_heads", "head_dim", "num_hidden_layers", "num_attention_heads")
SIZES = {"num_layers": 4, "num_heads": 6}

CASES = {
    "gpt_neo": Case(
        "GPTNeo",
        {**SIZES, "window_size": 70, "attention_types": [[["global", "local"], 2]]},
        without=ALIKE,
    ),
    "gpt_neo/irregular-wide-untied": Case(
        "GPTNeo",
        {
            **SIZES,
            "window_size": 70,
            "attention_types": [[["local"], 1], [["global"], 2], [["local"], 1]],
            "intermediate_size": None,
            "tie_word_embeddings": False,
        },
        without=ALIKE,
    ),
}


class TestGptNeo(DecoderFamily):
    cases = CASES
