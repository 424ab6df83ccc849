"""Invalid attention configs are rejected by full field name."""

import pytest

from jaxllm.config import AttentionConfig, TemperatureConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"qk_norm": "all"}, "attention.qk_norm='all' is not one of none, head"),
        ({"scale": 0.0}, "attention.scale=0.0 is not positive"),
        ({"softcap": -5.0}, "attention.softcap=-5.0 is not positive"),
        ({"window": 0}, "attention.window=0 is not positive"),
        ({"chunk": -1}, "attention.chunk=-1 is not positive"),
    ],
)
def test_invalid_attention_is_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        AttentionConfig(**fields)


def test_zero_temperature_scale_is_rejected():
    with pytest.raises(
        ValueError, match=r"attention\.temperature\.floor_scale=0\.0 is not positive"
    ):
        TemperatureConfig(floor_scale=0.0)
