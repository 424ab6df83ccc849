"""Distances from float64: measured on a result whose rounding is known."""

import numpy as np
import pytest
import torch

from jaxllm.interop.parity.execution.distances import Distances, measure
from jaxllm.numerics.error_vector import error_of

W = torch.randn(300, 200, generator=torch.Generator().manual_seed(0))
X = torch.randn(64, 300, generator=torch.Generator().manual_seed(1))
THEIRS = (X @ W).numpy()
TRUTH = (X.double() @ W.double()).numpy()


def run():
    return {"product": ((X @ W).numpy() - THEIRS.astype(np.float64)).astype(np.float32)}


@pytest.fixture(scope="module")
def distances():
    return measure("product", run)


def judged(distances, ours, theirs=THEIRS, name="product"):
    apart = ours - theirs.astype(np.float64)
    return distances.judge(name, apart, float(np.linalg.norm(theirs)))


def test_the_correction_leads_to_the_truth(distances):
    found = THEIRS + distances.corrections["product"].astype(np.float64)
    np.testing.assert_allclose(found, TRUTH, rtol=0, atol=1e-10)


def test_another_order_of_sums_is_accepted_and_lower_precision_is_not(distances):
    blocks = sum(X[:, i : i + 50] @ W[i : i + 50] for i in range(0, 300, 50)).numpy()
    error = judged(distances, blocks)
    assert 0 < error.measured <= error.threshold < 2e-6
    assert error.relative_l2 == pytest.approx(
        np.linalg.norm(blocks - TRUTH) / np.linalg.norm(TRUTH), rel=1e-3
    )
    rounded = (X.bfloat16().float() @ W).numpy()
    assert not judged(distances, rounded).ok


def test_an_infinite_departure_differs():
    """Such as that of a key that only one side masks."""
    errors = [error_of(np.full(4, 1e-7)), error_of(np.full(4, -2e-7))]
    distances = Distances({"scores": np.zeros(4)}, {"scores": errors})
    assert distances.judge("scores", np.zeros(4), 1.0).ok
    assert not distances.judge("scores", np.array([0, 0, np.inf, 0]), 1.0).ok
    assert not distances.judge("scores", np.array([0, 0, np.nan, 0]), 1.0).ok


def test_every_draw_is_shown_to_the_caller():
    seen = []
    found = measure("", run, lambda found, corrections: seen.append(found["product"]))
    assert len(seen) == len(found.draws["product"]) == 4
    assert not np.array_equal(seen[0], seen[1])


def test_distances_survive_a_pack(distances):
    again = Distances.from_pack(distances.to_pack())
    one, other = again.spread("product"), distances.spread("product")
    assert one.limit == pytest.approx(other.limit, rel=1e-6)
    assert one.reference == other.reference
