"""Judgement: what is suspect by a few draws is decided by more, and correct errors never differ."""

import numpy as np
import pytest
from far_tail import chance_of

from jaxllm.numerics.error_vector import error_of
from jaxllm.numerics.judgement import ENOUGH, Spread
from jaxllm.numerics.significance import CHANCE_OF_ARRAY, spread

SIZE = 1000
ALONG = np.random.default_rng(9).standard_normal(SIZE) / np.sqrt(SIZE)


def spread_of(draws):
    first, *others = map(error_of, draws)
    return spread(first, others, CHANCE_OF_ARRAY)


def drawn(rng, count, share, along=None):
    """Errors of which one direction has a share, as much of it as given or by chance."""
    wide = rng.standard_normal((count, 1)) if along is None else np.full((count, 1), along)
    rest = rng.standard_normal((count, SIZE)) / np.sqrt(SIZE)
    return np.sqrt(share) * wide * ALONG + np.sqrt(1 - share) * rest


@pytest.mark.cases(2, exhaustive=12)
@pytest.mark.parametrize("count", [5, ENOUGH])
@pytest.mark.parametrize(
    "shares", [[0.5], [0.9], [0.3], [1 - 1e-6], [0.7, 0.29], [0.2] * 4], ids=str
)
def test_correct_errors_differ_as_rarely_as_promised_for_every_spectrum(shares, count):
    def rejects(draws, error):
        judged = spread_of(draws).judge(error_of(error))
        return not judged.is_within and not judged.is_suspect

    chance, deviation = chance_of(rejects, shares, count, trials=1500)
    assert chance <= CHANCE_OF_ARRAY + 2 * deviation
    assert deviation < CHANCE_OF_ARRAY


def test_a_direction_that_few_draws_had_little_of_makes_an_error_suspect_only():
    rng = np.random.default_rng(0)
    few, error = drawn(rng, 5, 0.3, along=0.01), error_of(drawn(rng, 1, 0.3, along=3.0)[0])
    judged = spread_of(few).judge(error)
    assert judged.is_suspect
    assert not judged.is_within
    more = spread_of([*few, *drawn(rng, ENOUGH - 5, 0.3)]).judge(error)
    assert more.is_within
    assert not more.is_suspect


@pytest.mark.parametrize("count", [5, ENOUGH])
def test_a_mistake_is_certain_where_draws_have_nothing_of_it(count):
    rng = np.random.default_rng(0)
    found = spread_of(drawn(rng, count, 0.0))
    assert found.judge(error_of(drawn(rng, 1, 0.0)[0])).is_within
    judged = found.judge(error_of(8 * ALONG))
    assert not judged.is_within
    assert not judged.is_suspect


def test_enough_draws_see_smaller_mistakes():
    rng = np.random.default_rng(0)
    draws = drawn(rng, ENOUGH, 0.0)
    error = error_of(draws.mean(axis=0) + 1.5 * ALONG)
    assert spread_of(draws[:5]).judge(error).is_suspect
    judged = spread_of(draws).judge(error)
    assert not judged.is_suspect
    assert not judged.is_within


def test_an_error_that_is_not_finite_is_certain():
    found = spread_of(drawn(np.random.default_rng(0), 5, 0.5))
    for value in (np.nan, np.inf):
        judged = found.judge(error_of(np.full(SIZE, value)))
        assert not judged.is_within
        assert not judged.is_suspect


def test_without_draws_the_limit_decides():
    found = Spread(reference=1.0, scale=1.0, limit=3.0)
    assert found.judge(error_of(np.array([2.0]))).is_within
    assert not found.judge(error_of(np.array([4.0]))).is_suspect
    assert found.widened(2.0).judge(error_of(np.array([4.0]))).is_within
