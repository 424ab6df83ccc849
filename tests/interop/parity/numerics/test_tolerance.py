"""The threshold is a multiple of the noise floor, within bounds."""

import math

import pytest

from jaxllm.interop.parity.numerics import tolerance


def test_the_threshold_is_four_times_the_noise_floor():
    assert tolerance.forward_threshold(1e-5) == pytest.approx(4e-5)


def test_the_threshold_has_bounds():
    assert tolerance.forward_threshold(0.0) == tolerance.MIN_THRESHOLD
    assert pytest.approx(9.5e-7, rel=0.01) == tolerance.MIN_THRESHOLD
    assert tolerance.forward_threshold(0.5) == tolerance.MAX_FORWARD_THRESHOLD


def test_an_undefined_noise_floor_lets_nothing_pass():
    assert not math.inf <= tolerance.forward_threshold(math.nan)
