"""Masked keys have a score of minus infinity."""

import numpy as np

from jaxllm.interop.parity.numerics.attention_scores import seen_only


def test_every_way_of_masking_becomes_minus_infinity():
    scores = np.array([[[[1.0, -1e9, -3.4e38, 2.0], [3.0, -6e3, -np.inf, 1.0]]]], np.float32)
    seen = np.isfinite(seen_only(scores))
    np.testing.assert_array_equal(seen[0, 0], [[True, False, False, True]] * 2)
    np.testing.assert_array_equal(seen_only(scores)[seen], scores[seen])


def test_a_fully_masked_query_has_only_minus_infinity():
    scores = np.full((1, 1, 1, 3), -3.4e38, np.float32)
    assert np.isneginf(seen_only(scores)).all()
