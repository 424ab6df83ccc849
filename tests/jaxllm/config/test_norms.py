"""Norms are refused by the full names of their fields."""

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
def test_what_is_no_norm_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        NormConfig(**fields)
