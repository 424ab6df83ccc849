"""Distance biases equal those of transformers and the formulas."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from tiny import TINY, relative_l2
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

from jaxllm.config import RelativeBuckets, with_fields
from jaxllm.layers.attention.distance_bias import alibi_slopes, bucket_table, make_bias

# Two sequences that start at different positions.
QUERIES, KEYS = np.array([[3, 4, 5], [100, 101, 250]]), np.array([[0, 3, 4, 5], [0, 99, 101, 300]])


def relative(causal: bool, **changes: int):
    return with_fields(
        TINY,
        {
            "attention.causal": causal,
            "positions.kind": "relative",
            "positions.relative": RelativeBuckets(**changes),
        },
    )


@pytest.mark.parametrize("num_heads", [1, 2, 6, 8, 12, 13])
def test_alibi_slopes_match_transformers(num_heads):
    alibi = build_alibi_tensor(torch.ones(1, 2), num_heads, torch.float32)
    np.testing.assert_allclose(alibi_slopes(num_heads), alibi[:, 0, 1], rtol=1e-6)


def test_alibi_is_linear_in_distance():
    found = make_bias(with_fields(TINY, {"positions.kind": "alibi"}), rngs=nnx.Rngs(0))(
        QUERIES, KEYS
    )
    assert found.shape == (2, 4, 3, 4)
    for n, slope in enumerate([1 / 4, 1 / 16, 1 / 64, 1 / 256]):
        expected = -slope * np.abs(QUERIES[:, :, None] - KEYS[:, None, :])
        np.testing.assert_allclose(found[:, n], expected, rtol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_buckets_match_transformers(causal):
    """Covers every distance, including the edges of buckets, for many sizes."""
    for count in (4, 8, 12, 32, 64, 100):
        for farthest in (60, 64, 128, 256, 1000):
            ahead = np.arange(-farthest - 50, farthest + 51)
            expected = T5Attention._relative_position_bucket(
                torch.tensor(ahead), not causal, count, farthest
            )
            table = bucket_table(RelativeBuckets(count=count, max_distance=farthest), causal)
            found = table[np.clip(ahead, -farthest, farthest) + farthest]
            np.testing.assert_array_equal(found, expected, f"{count} to {farthest}")


@pytest.mark.parametrize("causal", [False, True])
def test_relative_bias_matches_transformers(causal):
    config = relative(causal, count=12, max_distance=60)
    bias = make_bias(config, rngs=nnx.Rngs(0))
    table = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
    bias.embedding.set_value(jnp.asarray(table))
    theirs = SimpleNamespace(
        is_decoder=causal,
        relative_attention_num_buckets=12,
        relative_attention_max_distance=60,
        relative_attention_bias=torch.nn.Embedding.from_pretrained(torch.tensor(table)),
        _relative_position_bucket=T5Attention._relative_position_bucket,
    )
    expected = T5Attention.compute_bias(theirs, 301, 301)[0].numpy()
    found = np.asarray(bias(QUERIES, KEYS))
    for b in range(2):
        at = np.ix_(range(4), QUERIES[b], KEYS[b])
        assert relative_l2(found[b], expected[at]) == 0


def test_other_kinds_of_positions_have_no_bias():
    assert make_bias(TINY, rngs=nnx.Rngs(0)) is None
