"""Invalid norm configs are rejected by full field name."""

import pytest

from jaxllm.config import NormConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "batch"}, "norms.kind='batch' is not one of rms, rms_float32"),
        ({"placement": "between"}, "norms.placement='between' is not one of pre, post"),
        ({"eps": -1.0}, "norms.eps=-1.0 is not positive"),
        ({"final_eps": 0.0}, "norms.final_eps=0.0 is not positive"),
    ],
)
def test_invalid_norm_is_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        NormConfig(**fields)
