"""Invalid dtypes and initializations are rejected by full field name."""

import jax.numpy as jnp
import pytest

from jaxllm.config import InitConfig, NumericsConfig
from jaxllm.config.numerics import check_dtype
from jaxllm.errors import UserError


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (NumericsConfig, {"dtype": "float64"}, "numerics.dtype='float64' is not one of .*bfloat16"),
        (NumericsConfig, {"param_dtype": "fp32"}, "numerics.param_dtype='fp32' .* float32"),
        (NumericsConfig, {"reduce_dtype": "float16"}, "numerics.reduce_dtype='float16' .* float32"),
        (
            NumericsConfig,
            {"reduce_dtype": "bfloat16"},
            "needs numerics.dtype='bfloat16', not 'floa",
        ),
        (InitConfig, {"std": -0.1}, "init.std=-0.1 is negative"),
        (InitConfig, {"std": float("nan")}, "init.std=nan is not a finite number"),
        (InitConfig, {"kind": "zeros"}, "init.kind='zeros' is not one of normal, xavier"),
    ],
)
def test_unknown_dtype_or_initialization_is_rejected(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        kind(**fields)


def test_a_dtype_that_is_no_name_is_told_to_be_one():
    check_dtype(None)
    check_dtype("bfloat16")
    message = "is not the name of a dtype: give one of float32, bfloat16, float16 as text"
    with pytest.raises(UserError, match=message):
        check_dtype(jnp.bfloat16)
