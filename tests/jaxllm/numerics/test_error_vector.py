"""Error vectors: lengths are exact, sketches keep angles, other shapes are refused."""

import numpy as np
import pytest

from jaxllm.numerics.error_vector import SKETCH, error_of


def test_a_sketch_keeps_lengths_and_angles():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 50_000)) * np.linspace(0, 1, 50_000)
    b = 0.6 * a + 0.8 * b
    one, other = error_of(a, 0 * a), error_of(b, 0 * b)
    assert one.length == pytest.approx(np.linalg.norm(a))
    assert one.sketch.shape == (SKETCH,)
    assert np.linalg.norm(one.sketch) == pytest.approx(one.length, rel=0.15)
    cosine = one.sketch @ other.sketch / np.linalg.norm(one.sketch) / np.linalg.norm(other.sketch)
    assert cosine == pytest.approx(0.6, abs=0.1)


def test_other_shapes_are_no_error():
    for truth in (np.ones(3), np.ones((3, 1)), np.ones((2, 3)), 1.0):
        with pytest.raises(ValueError, match="different shapes"):
            error_of(np.ones((1, 3)), truth)


@pytest.mark.parametrize("size", [9 * SKETCH, 10_000, 300 * SKETCH, 700_000])
def test_a_sketch_sees_errors_that_are_equal_everywhere(size):
    error = error_of(np.ones(size))
    assert np.linalg.norm(error.sketch) == pytest.approx(error.length, rel=0.2)
