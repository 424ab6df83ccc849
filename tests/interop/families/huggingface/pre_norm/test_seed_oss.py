"""Seed-OSS: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

CASES = {
    "seed_oss": Case("SeedOss", written_as="qwen2"),
    "seed_oss/all-biases-tied": Case(
        "SeedOss",
        {"attention_out_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        written_as="llama",
    ),
}


class TestSeedOss(DecoderFamily):
    cases = CASES
