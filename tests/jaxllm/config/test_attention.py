"""Invalid attention configs are rejected by full field name."""

import pytest
from tiny import TINY

from jaxllm.config import (
    AttentionConfig,
    DeltaConfig,
    LatentConfig,
    LayerKind,
    TemperatureConfig,
    with_fields,
)


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


def test_invalid_latent_attention_is_rejected():
    sizes = {"kv_rank": 8, "rope_dim": 4, "value_dim": 6}
    with pytest.raises(ValueError, match=r"attention\.latent\.query_rank=0 is less than 1"):
        LatentConfig(**sizes, query_rank=0)
    latent = LatentConfig(**sizes)
    with pytest.raises(ValueError, match=r"excludes attention\.sinks=True, attention\.window=4"):
        AttentionConfig(latent=latent, sinks=True, window=4)
    with pytest.raises(ValueError, match=r"num_kv_heads=2 with attention\.latent: it must be"):
        with_fields(TINY, {"attention.latent": latent})
    wide = LatentConfig(kv_rank=8, rope_dim=4, value_dim=20)
    with pytest.raises(ValueError, match=r"value_dim=20 must be at most head_dim=16"):
        with_fields(TINY, {"attention.latent": wide, "num_kv_heads": 4})


def test_cross_attention_has_no_sinks():
    with pytest.raises(ValueError, match=r"attention\.cross=True with attention\.sinks=True"):
        with_fields(TINY, {"attention.cross": True, "attention.sinks": True})


def test_invalid_gated_delta_net_is_rejected():
    sizes = {"num_heads": 4, "key_dim": 4, "value_dim": 6}
    with pytest.raises(ValueError, match=r"num_heads=4 is not a multiple of num_key_heads=3"):
        DeltaConfig(**sizes, num_key_heads=3)
    with pytest.raises(ValueError, match=r"attention\.delta\.conv_size=0 is less than 1"):
        DeltaConfig(**sizes, num_key_heads=2, conv_size=0)
    delta = DeltaConfig(**sizes, num_key_heads=2)
    with pytest.raises(ValueError, match=r"delta excludes attention\.causal=False, attention\.cro"):
        AttentionConfig(delta=delta, causal=False, cross=True)
    with pytest.raises(ValueError, match=r"latent excludes attention\.gated=True"):
        AttentionConfig(latent=LatentConfig(kv_rank=8, rope_dim=4, value_dim=6), gated=True)
    with pytest.raises(ValueError, match=r"kind 'delta', but attention\.delta is None"):
        with_fields(TINY, {"pattern": (LayerKind(attention="delta"),)})
    with pytest.raises(ValueError, match="pattern has no layer of kind 'delta'"):
        with_fields(TINY, {"attention.delta": delta})
