"""The head's transform equals the formula, for the whole vocabulary and for a part."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, random_model

from jaxllm.config import HeadConfig


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_the_capped_scaled_products_with_bias(tied):
    model = random_model(head=HeadConfig(tied=tied, scale=0.5, softcap=3.0, bias=True))
    head = model.head()
    assert head.dims == ("VD" if tied else "DV")
    x_BTD = np.random.default_rng(0).standard_normal((2, 3, TINY.embed_dim)).astype(np.float32)
    kernel = np.asarray(head.kernel).T if tied else np.asarray(head.kernel)
    products = x_BTD @ kernel
    expected = 3 * np.tanh((0.5 * products + np.asarray(head.bias_V)) / 3)
    np.testing.assert_allclose(model.unembed(x_BTD), expected, rtol=1e-4, atol=1e-5)
    part = head.transform(jnp.asarray(products[..., 8:24]), head.bias_V[8:24])
    np.testing.assert_allclose(part, expected[..., 8:24], rtol=1e-4, atol=1e-5)
