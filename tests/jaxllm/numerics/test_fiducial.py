"""Fiducial limits: the t test in one direction, little room in many, for every spectrum."""

import numpy as np
import pytest
from far_tail import chance_of
from scipy.stats import t as student

from jaxllm.numerics.fiducial import SPECTRA, fiducial_factor, share_along

CHANCE = 2.5e-8


@pytest.mark.parametrize("count", [2, 5, 21])
def test_errors_of_one_direction_follow_the_t_distribution(count):
    exact = student.isf(CHANCE / SPECTRA / 2, count)
    assert fiducial_factor(1.0, count, CHANCE) == pytest.approx(exact, rel=0.01)


def test_more_draws_and_more_directions_leave_less_room():
    factors = np.array(
        [[fiducial_factor(share, n, CHANCE) for share in (1, 0.1, 1e-3)] for n in (5, 10, 21)]
    )
    assert (np.diff(factors) < 0).all()
    assert (np.diff(factors, axis=0) < 0).all()
    assert 1 < factors[-1, -1] < 1.25


def test_the_share_along_an_error_is_that_of_its_direction():
    draws = np.array([[3.0, 4.0, 0.0], [0.0, 5.0, 0.0]])
    assert share_along(np.array([0.0, 2.0, 0.0]), draws) == pytest.approx((16 + 25) / 50)
    assert share_along(np.array([0.0, 0.0, 1.0]), draws) == 0


@pytest.mark.cases(2, exhaustive=8)
@pytest.mark.parametrize("count", [21, 5])
@pytest.mark.parametrize("shares", [[0.5], [0.7], [0.1], [0.4, 0.4]], ids=str)
def test_the_chance_holds_for_every_spectrum(shares, count):
    """Also where the draws have little of a direction that the error has much of."""

    def rejects(draws, error):
        ratio = np.linalg.norm(error) * np.sqrt(count) / np.linalg.norm(draws)
        return ratio > fiducial_factor(share_along(error, draws), count, CHANCE)

    chance, deviation = chance_of(rejects, shares, count, trials=6000)
    assert chance <= CHANCE + 2 * deviation
    assert deviation < CHANCE
    assert shares != [0.5] or chance > CHANCE / 20
