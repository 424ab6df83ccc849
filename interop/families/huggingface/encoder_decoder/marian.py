"""Marian (OPUS-MT) in the Hugging Face format: BART with sinusoids, whose halves are apart."""

from .bart_like import BartLike

FIXED = {
    "norms.placement": "post",
    "norms.embed": False,
    "norms.final": False,
    "positions.kind": "sinusoidal",
    "positions.waves": "halves",
}

MARIAN = BartLike(
    "marian",
    "MarianMTModel",
    FIXED,
    start_token=58100,
    scales_after=True,
    target_vocab="decoder_vocab_size",
    only={"share_encoder_decoder_embeddings": (True,)},
).family()
