"""StarCoder2: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

CASES = {
    "starcoder2": Case("Starcoder2"),
    "starcoder2/window-no-biases-untied": Case(
        "Starcoder2", {"sliding_window": 70, "use_bias": False, "tie_word_embeddings": False}
    ),
}


class TestStarcoder2(DecoderFamily):
    cases = CASES
