"""mT5: logits equal those of transformers; weights and config survive the round trip."""

from encoder_decoder_case import Case
from encoder_decoder_family import EncoderDecoderFamily

SIZES = {
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
    "mt5": Case("MT5", SIZES, has_own_head=True, written_as="t5"),
    "mt5/relu-tied": Case("MT5", SIZES | {"feed_forward_proj": "relu"}, written_as="t5"),
}


class TestMt5(EncoderDecoderFamily):
    cases = CASES
