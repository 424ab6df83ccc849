"""Expected steps: one more correct step passes, and a mistake in any of its parts is named."""

import numpy as np
import pytest

from jaxllm.train.verify.expected_step import ExpectedStep
from jaxllm.train.verify.variants import Step

RNG = np.random.default_rng(0)
GRADIENT = RNG.standard_normal((40, 30))
BEFORE = {"kernel": RNG.standard_normal((40, 30)).astype(np.float32)}
CHANCE = 1e-4


def step(noise=1e-7, **changes):
    gradient = GRADIENT * (1 + noise * RNG.standard_normal(GRADIENT.shape))
    update = -1e-3 * gradient / np.sqrt(gradient**2)
    arrays = {"first_moment": 0.1 * gradient, "second_moment": 0.05 * gradient**2}
    arrays["update"] = (BEFORE["kernel"] + update).astype(np.float32) - BEFORE["kernel"]
    named = {field: {"kernel": array} for field, array in arrays.items()}
    numbers = {"loss": 5 + noise * RNG.standard_normal(), "grad_norm": 3 + noise * RNG.random()}
    return Step(**{**numbers, **named, "before": BEFORE, **changes})


@pytest.fixture
def expected():
    return ExpectedStep([step() for _ in range(7)], CHANCE)


def wrong_in(expected, found):
    return {d.what for d in expected.differences(found) if not d.ok}


def test_one_more_correct_step_passes(expected):
    found = list(expected.differences(step()))
    assert [d.what for d in found][:2] == ["loss", "norm of all gradients"]
    assert {d.parameter for d in found[2:]} == {"kernel"}
    assert len(found) == 5
    assert all(d.ok and d.is_decided for d in found)
    moment = found[2]
    assert moment.floor == pytest.approx(1e-7, rel=0.1)
    assert moment.floor < moment.threshold < 3 * moment.floor


@pytest.mark.parametrize(
    ("field", "what"),
    [
        ("first_moment", "first moment"),
        ("second_moment", "second moment"),
        ("update", "update"),
    ],
)
def test_a_wrong_array_is_named(expected, field, what):
    right = step()
    array = getattr(right, field)["kernel"]
    wrong = right._replace(**{field: {"kernel": array * np.float32(1.01)}})
    assert wrong_in(expected, wrong) == {what}


def test_a_wrong_number_is_named(expected):
    assert wrong_in(expected, step(loss=5.001)) == {"loss"}
    assert wrong_in(expected, step(loss=float("nan"), grad_norm=3.001)) == {
        "loss",
        "norm of all gradients",
    }


@pytest.mark.parametrize(
    ("field", "what"), [("loss", "loss"), ("grad_norm", "norm of all gradients")]
)
def test_numbers_that_agree_by_chance_are_granted_their_own_rounding(field, what):
    value = np.float32(5.51)
    expected = ExpectedStep([step(**{field: float(value)}) for _ in range(7)], CHANCE)
    one_more = float(np.nextafter(value, np.float32(np.inf)))
    assert wrong_in(expected, step(**{field: one_more})) == set()
    assert wrong_in(expected, step(**{field: float(value) * (1 + 1e-6)})) == {what}


def test_updates_are_compared_where_the_gradient_exceeds_its_noise(expected):
    right = step()
    update = right.update["kernel"].copy()
    update[np.abs(GRADIENT) < 1e-4] *= -1  # where the gradient is noise, its sign is
    assert wrong_in(expected, right._replace(update={"kernel": update})) == set()


def test_a_gradient_of_nothing_but_noise_is_relative_to_all():
    def noisy(**changes):
        found = step()
        bias = 1e-9 * RNG.standard_normal(50)
        fields = {"first_moment": bias, "second_moment": bias**2, "update": 0 * bias}
        more = {f: {**getattr(found, f), "bias": x} for f, x in fields.items()}
        return found._replace(**more, before={**BEFORE, "bias": np.ones(50, np.float32)})

    expected = ExpectedStep([noisy() for _ in range(7)], CHANCE)
    [row] = [
        d
        for d in expected.differences(noisy())
        if (d.what, d.parameter) == ("first moment", "bias")
    ]
    assert row.relative_to == "all"
    decided = {(d.what, d.parameter): d.is_decided for d in expected.differences(noisy())}
    assert not decided["update", "bias"]  # none of its elements is compared
    assert decided["update", "kernel"]
    assert row.ok
