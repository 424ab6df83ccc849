"""The TPU kernel, interpreted, equals attention by definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import CASES, Case, arrays, call_of, check
from tiers import examples

from jaxllm.layers.attention.kernels.splash import OrderedMask, splash_attention
from jaxllm.layers.attention.mask import MaskSpec


@pytest.mark.cases(1, exhaustive=4)
@pytest.mark.parametrize("name", examples(CASES, "everything"))
def test_kernel_matches_the_definition(name):
    check(CASES[name], functools.partial(splash_attention, interpret=True))


def test_positions_that_the_kernel_cannot_see_make_nan():
    """A window is by position, and the kernel counts tokens: a gap would be a wrong number."""
    case = Case(T=20, B=2, H=8, spec=MaskSpec(window=4))
    q, k, v, *_ = map(jnp.asarray, arrays(case))
    gap = np.tile(np.arange(20), (2, 1))
    gap[1, 10:] += 3
    call = call_of(case, None)._replace(positions_BS=jnp.asarray(gap))
    out = jax.jit(lambda *given: splash_attention(*given, call, interpret=True))(q, k, v)
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1]).all()


@pytest.mark.parametrize("spec", [MaskSpec(), MaskSpec(window=50), MaskSpec(False, 50)])
def test_a_mask_by_tiles_is_the_mask_by_elements(spec):
    order = np.random.default_rng(0).permutation(300).astype(np.int32)
    mask = OrderedMask(spec, np.sort(order.reshape(-1, 20)).reshape(-1), 320)
    expected = spec.sees(mask.q_sequence[:, None], np.arange(320))
    for rows in range(0, 300, 20):
        for columns in range(0, 320, 40):
            tile = slice(rows, rows + 20), slice(columns, columns + 40)
            np.testing.assert_array_equal(mask[tile], expected[tile])
    assert hash(mask) == hash(OrderedMask(spec, mask.q_sequence.copy(), 320))
    assert mask != OrderedMask(spec, mask.q_sequence, 256)
