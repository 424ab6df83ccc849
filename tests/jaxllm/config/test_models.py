"""Invalid model configs are rejected; the message gives the full name of each field."""

import dataclasses

import pytest
from kinds import CONFIGS
from tiny import TINY

from jaxllm.config import HeadConfig, with_fields

PAIR = CONFIGS["encoder-decoder"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": 0.0}, "head.scale=0.0 is not positive"),
        ({"softcap": -30.0}, "head.softcap=-30.0 is not positive"),
    ],
)
def test_invalid_head_is_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        HeadConfig(**fields)


def test_empty_vocabulary_is_rejected():
    with pytest.raises(ValueError, match="vocab_size=0 is less than 1"):
        dataclasses.replace(TINY, vocab_size=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norms.kind": "layer"}, None),
        (
            {"numerics.dtype": "bfloat16"},
            "numerics is .*dtype='float32'.* in the encoder and .*bfloat",
        ),
        (
            {"attention.causal": False},
            "decoder.attention.causal=False: they must be False and True",
        ),
        ({"attention.cross": False}, "decoder.attention.cross=False: they must be False and True"),
    ],
)
def test_decoder_must_match_its_encoder(changes, message):
    decoder = with_fields(PAIR.decoder, changes)
    if message is None:
        assert dataclasses.replace(PAIR, decoder=decoder).decoder == decoder
    else:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(PAIR, decoder=decoder)
