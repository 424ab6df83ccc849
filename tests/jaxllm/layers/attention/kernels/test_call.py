"""The arguments that kernels share."""

import jax.numpy as jnp
import numpy as np

from jaxllm.layers.attention.kernels.call import Call, padded, round_up
from jaxllm.layers.attention.mask import MaskSpec


def test_a_call_knows_its_queries_and_segments():
    order = np.array([[0, 3], [1, 2]])
    call = Call(MaskSpec(), jnp.arange(4)[None], None, 1.0, order=order, shard=1)
    np.testing.assert_array_equal(call.indices, [1, 2])
    np.testing.assert_array_equal(call.segments, np.zeros((1, 4)))


def test_padding_is_at_the_end_of_axis_1():
    np.testing.assert_array_equal(padded(jnp.ones((1, 2, 1)), 3, 7)[0, :, 0], [1, 1, 7])


def test_lengths_are_rounded_up_to_whole_tiles():
    assert [round_up(length, 64) for length in (1, 64, 65)] == [64, 64, 128]
