"""Error metrics against values computed by hand."""

import math

import chex
import numpy as np
import pytest

from jaxllm.interop.parity.numerics import metrics


def test_relative_l2_is_the_ratio_of_norms():
    error = metrics.masked_relative_l2(np.array([3.0, 4.5]), np.array([3.0, 4.0]))
    assert error == pytest.approx(0.1)


def test_relative_l2_of_equal_zeros_is_zero_and_of_anything_else_infinite():
    zeros = np.zeros(3, np.float32)
    assert metrics.masked_relative_l2(zeros, zeros) == 0
    assert metrics.masked_relative_l2(zeros + 1, zeros) == math.inf


def test_nan_and_infinity_are_never_close():
    infinite = np.array([np.inf])
    assert math.isnan(metrics.masked_relative_l2(np.array([np.nan]), np.ones(1)))
    assert math.isnan(metrics.masked_relative_l2(infinite, infinite))
    assert math.isnan(metrics.max_over_rms(infinite, infinite))
    assert metrics.masked_relative_l2(infinite, np.ones(1)) == math.inf


def test_relative_l2_is_computed_in_float64():
    reference = np.full(4, 1e30, np.float32)  # whose squares overflow float32
    assert metrics.masked_relative_l2(reference, reference) == 0
    assert math.isfinite(metrics.masked_relative_l2(2 * reference, reference))


def test_max_over_rms():
    reference = np.array([[3.0, -4.0]])
    ours = np.array([[3.0, -3.5]])
    assert metrics.masked_max_abs(ours, reference) == 0.5
    assert metrics.max_over_rms(ours, reference) == pytest.approx(0.5 / math.sqrt(12.5))
    assert metrics.max_over_rms(reference * 0, reference * 0) == 0


def test_ulps_count_the_float32_numbers_between():
    reference = np.array([1.0, 1.0, 2.0, 0.0, -1.0], np.float32)
    ours = reference.copy()
    ours[0] = np.nextafter(reference[0], np.float32(2))
    ours[2] = np.float32(2 - 3 * 2.0**-23)  # below 2, neighbors are half as far apart
    assert metrics.ulps(ours, reference) == (0, 3, 3)
    assert metrics.ulps(reference, reference) == (0, 0, 0)


def test_ulps_across_zero_and_of_nan():
    tiny = np.float32(2.0**-149)
    assert metrics.ulps(np.array([tiny]), np.array([-tiny]))[2] == 2
    assert metrics.ulps(np.array([-0.0], np.float32), np.array([0.0], np.float32))[2] == 0
    ours = np.array([1, 1, np.nan], np.float32)
    assert metrics.ulps(ours, np.ones(3, np.float32)) == (0, math.inf, math.inf)


def test_kl_by_hand():
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
    by_hand = 0.5 * math.log(2) + 0.25 * math.log(1) + 0.25 * math.log(1 / 2)
    kl_BT = metrics.kl_per_token(np.log(q)[None, None] + 7, np.log(p)[None, None] - 3)
    chex.assert_shape(kl_BT, (1, 1))
    assert kl_BT[0, 0] == pytest.approx(by_hand, rel=1e-12)


def test_kl_is_of_the_reference_relative_to_the_model():
    p, q = np.array([[[0.9, 0.1]]]), np.array([[[0.5, 0.5]]])
    forward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    kl_BT = metrics.kl_per_token(ours_BTV=np.log(q), reference_BTV=np.log(p))
    assert kl_BT[0, 0] == pytest.approx(forward, rel=1e-12)


def test_kl_far_below_the_precision_of_float64():
    reference = np.zeros((1, 1, 2))
    ours = np.array([[[1e-9, -1e-9]]])
    assert metrics.kl_per_token(ours, reference)[0, 0] == pytest.approx(5e-19, rel=1e-3)


def test_kl_of_tokens_with_probability_zero():
    low = -np.inf
    one, both = np.array([[[0.0, low]]]), np.array([[[0.0, 0.0]]])
    assert metrics.kl_per_token(both, one)[0, 0] == pytest.approx(math.log(2))
    assert metrics.kl_per_token(one, both)[0, 0] == math.inf
    assert metrics.kl_per_token(one, one)[0, 0] == 0


def test_top1_agreement_and_ties_within_noise():
    reference = np.array([[[1.0, 1.2, 0.0], [5.0, 0.0, 1.0], [0.0, 3.0, 1.0]]])
    ours = np.array([[[1.3, 1.2, 0.0], [0.0, 0.0, 1.0], [0.0, 3.0, 1.0]]])
    assert metrics.top1_agrees(ours, reference).tolist() == [[False, False, True]]
    assert metrics.top1_unexplained(ours, reference, noise=0.0) == 2
    assert metrics.top1_unexplained(ours, reference, noise=0.11) == 1  # 0.2 <= 2 x 0.11
    assert metrics.top1_unexplained(ours, reference, noise=2.0) == 0


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (3, [(0, 4)]),
        (4, [(0, 4)]),
        (5, [(0, 4), (4, 32)]),
        (600, [(0, 4), (4, 32), (32, 128), (128, 512), (512, None)]),
    ],
)
def test_position_buckets_end_with_the_sequence(length, expected):
    assert list(metrics.position_buckets(length)) == expected
