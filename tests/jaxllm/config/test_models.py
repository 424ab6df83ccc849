"""Invalid model configs are rejected; the message gives the full name of each field."""

import dataclasses

import pytest
from kinds import CONFIGS
from tiny import TINY

from jaxllm.config import HeadConfig, check_has_head, has_head, with_fields, with_head
from jaxllm.errors import UserError

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


def test_a_model_without_a_head_has_no_other_setting_of_one():
    bare = with_fields(TINY, {"head.kind": "none"})
    assert (has_head(TINY), has_head(bare)) == (True, False)
    assert with_head(TINY) is TINY
    assert with_head(bare) == with_fields(TINY, {"head.tied": True})
    for purpose in ("generate", "train"):
        check_has_head(TINY, purpose)
        with pytest.raises(
            UserError, match=rf"no head \(head.kind='none'\), so it cannot {purpose}"
        ):
            check_has_head(bare, purpose)
    with pytest.raises(ValueError, match=r"excludes head.tied=True and head.scale=2.0"):
        HeadConfig(kind="none", tied=True, scale=2.0)
