"""T5: logits equal those of transformers; weights and config survive the round trip."""

from encoder_decoder_case import Case
from encoder_decoder_family import EncoderDecoderFamily

# H != D / N, and sizes that differ from each other: a mix-up of axes changes a shape.
T5 = {
    "vocab_size": 96,
    "d_model": 48,
    "d_kv": 16,
    "d_ff": 56,
    "num_layers": 4,
    "num_decoder_layers": 3,
    "num_heads": 6,
    "decoder_start_token_id": 5,
}
CASES = {
    "t5": Case("T5", T5),
    # Distances beyond the last bucket, and uneven bucket boundaries.
    "t5/few-buckets": Case(
        "T5",
        T5 | {"relative_attention_num_buckets": 12, "relative_attention_max_distance": 60},
    ),
    "t5/v1.1": Case(
        "T5", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, True
    ),
    "t5/gated-silu-tied-unscaled": Case(
        "T5", T5 | {"feed_forward_proj": "gated-silu", "tie_word_embeddings": False}
    ),
}


class TestT5(EncoderDecoderFamily):
    cases = CASES
