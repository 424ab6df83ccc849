"""Marian: logits equal those of transformers; weights and config survive the round trip."""

from encoder_decoder_case import Case
from encoder_decoder_family import EncoderDecoderFamily

# H != D / N, and sizes that differ from each other: a mix-up of axes changes a shape.
SIZES = {
    "vocab_size": 96,
    "d_model": 48,
    "encoder_layers": 3,
    "decoder_layers": 4,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 56,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 512,
    "decoder_start_token_id": 7,
    "forced_eos_token_id": None,
    "pad_token_id": 95,
    "eos_token_id": 0,
}

CASES = {
    "marian": Case("Marian", SIZES, model_class="MarianMTModel"),
    "marian/scaled-silu": Case(
        "Marian",
        SIZES | {"scale_embedding": True, "activation_function": "swish"},
        model_class="MarianMTModel",
    ),
}


class TestMarian(EncoderDecoderFamily):
    cases = CASES
