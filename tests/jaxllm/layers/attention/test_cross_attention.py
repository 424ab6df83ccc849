"""Cross-attention equals the textbook formula, one row at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import TINY, relative_l2

from jaxllm.config import with_fields
from jaxllm.layers.attention.attention import MIN_BLOCK
from jaxllm.layers.attention.cross_attention import CrossAttention
from jaxllm.layers.context import Source

CONFIG = with_fields(
    TINY,
    {
        "attention.cross": True,
        "attention.qkv_bias": True,
        "attention.out_bias": True,
        "attention.scale": 0.7,
    },
)
RNG = np.random.default_rng(0)
B, T, S, D = 2, MIN_BLOCK + 9, 7, CONFIG.embed_dim
X_BTD, Y_BSD = (RNG.standard_normal((B, length, D)).astype(np.float32) for length in (T, S))
SOURCE_IDS = np.array([[1, 1, 1, 1, 1, 0, 0], [1, 1, 2, 2, 2, 2, 0]])


@pytest.fixture(scope="module")
def layer():
    layer = CrossAttention(CONFIG, rngs=nnx.Rngs(0))
    state = jax.tree.map(
        lambda x: jnp.asarray(0.3 * RNG.standard_normal(x.shape), x.dtype), nnx.state(layer)
    )
    nnx.update(layer, state)
    return layer


def expected(layer, ids_BT: np.ndarray) -> np.ndarray:
    """`softmax(q k scale) v` over the source tokens of the query's segment, in float64."""

    def project(name: str, x: np.ndarray, equation: str) -> np.ndarray:
        linear = getattr(layer, name)
        kernel, bias = (np.asarray(x[...], np.float64) for x in (linear.kernel, linear.bias))
        return np.einsum(equation, x, kernel) + bias

    q = project("q_proj", X_BTD, "btd,dnh->btnh")
    k, v = (project(f"{name}_proj", Y_BSD, "bsd,dnh->bsnh") for name in "kv")
    out = np.zeros_like(q)
    for b, t, n in np.ndindex(*q.shape[:3]):
        seen = SOURCE_IDS[b] == ids_BT[b, t]
        kv_head = n // (CONFIG.num_heads // CONFIG.num_kv_heads)
        scores = 0.7 * k[b, seen, kv_head] @ q[b, t, n]
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights / weights.sum() @ v[b, seen, kv_head]
    return project("o_proj", out, "btnh,nhd->btd")


def test_queries_attend_to_source_tokens_of_their_segment(layer):
    ids_BT = np.ones((B, T), int)
    ids_BT[1, 50:] = 2
    source = layer.project_source(Source(Y_BSD, SOURCE_IDS))
    assert relative_l2(layer(X_BTD, source, ids_BT), expected(layer, ids_BT)) <= 1e-6


def test_segment_ids_default_to_one(layer):
    source = layer.project_source(Source(Y_BSD, SOURCE_IDS))
    found = layer(X_BTD, source)
    assert relative_l2(found, expected(layer, np.ones((B, T), int))) <= 1e-6
