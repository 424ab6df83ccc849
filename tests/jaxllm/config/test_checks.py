"""Validation helpers of the config classes: valid values pass, messages are complete."""

import dataclasses
import math
from typing import Literal

import numpy as np
import pytest

from jaxllm.config.checks import (
    check_counts,
    check_fields,
    check_not_negative,
    check_positive,
    check_seed,
    show,
)
from jaxllm.errors import UserError


@dataclasses.dataclass
class Inner:
    num_layers: int = 1


@dataclasses.dataclass
class Part:
    kind: Literal["a", "b"] = "a"
    count: int | None = 1
    rate: float | None = 0.5
    size: int = 1
    num_layers: int = 1
    flag: bool = False
    name: str = ""
    inner: Inner = dataclasses.field(default_factory=Inner)
    rates: tuple[float, ...] = ()


@pytest.mark.parametrize(
    "part",
    [
        Part(),
        Part(kind="b", count=None, rate=None),
        Part(rate=2, size=np.int64(3), rates=(1, np.float32(0.5))),
        Part(rate=10**12, size=2**31 - 1, num_layers=10_000),
    ],
)
def test_valid_values_and_none_pass(part):
    check_fields(part, "part.")
    check_counts(part, "count", prefix="part.")
    check_positive(part, "rate", prefix="part.")
    check_not_negative(part, "rate", "count", prefix="part.")


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda part: check_fields(part, "part."), "^part.kind='c' is not one of a, b$"),
        (lambda part: check_counts(part, "count", prefix="part."), "^part.count=0 is less than 1$"),
        (
            lambda part: check_positive(part, "rate", prefix="part."),
            "^part.rate=0.0 is not positive$",
        ),
        (lambda part: check_counts(part, "count"), "^count=0 is less than 1$"),
        (
            lambda part: check_not_negative(part, "count", "size", prefix="part."),
            "^part.size=-1 is negative$",
        ),
    ],
)
def test_message_gives_full_name_value_and_allowed_values(check, message):
    with pytest.raises(ValueError, match=message):
        check(Part(kind="c", count=0, rate=0.0, size=-1))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"size": None}, "size=None is not a whole number"),
        ({"size": 1.5}, "size=1.5 is not a whole number"),
        ({"size": True}, "size=True is not a whole number"),
        ({"count": "3"}, "count='3' is not a whole number"),
        ({"size": 2**31}, "size=2147483648 exceeds the limit of 2,147,483,647"),
        ({"num_layers": 10_001}, "num_layers=10001 exceeds the limit of 10,000"),
        ({"rate": math.nan}, "rate=nan is not a finite number"),
        ({"rate": -math.inf}, "rate=-inf is not a finite number"),
        ({"rate": 10**400}, "0 is not a finite number"),
        ({"flag": 1}, "flag=1 is not True or False"),
        ({"name": 1}, "name=1 is not of type str"),
        ({"inner": None}, "inner=None is not of type Inner"),
        ({"rates": [1.0]}, "rates=[1.0] is not a tuple of float"),
        ({"rates": (1.0, math.nan)}, "rates=(1.0, nan) is not a tuple of float"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_values_of_another_type_or_beyond_a_limit_are_rejected(fields, problem):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is examined below
        check_fields(Part(**fields))
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 300


def test_one_error_lists_every_wrong_field():
    with pytest.raises(ValueError, match=r"^kind='c' .*; rate=nan .*; size=None ") as caught:
        check_fields(dataclasses.replace(Part(kind="c", size=None), rate=math.nan))
    assert str(caught.value).count(";") == 2


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70])
def test_seeds_have_32_bits(seed):
    check_seed(0)
    check_seed(2**32 - 1)
    with pytest.raises(UserError, match=rf"^data\.seed={seed} is not in \[0, 2\*\*32\)$"):
        check_seed(seed, "data.seed")


def test_long_values_are_shortened():
    nested: list = []
    nested.append(nested)
    assert show("a.txt") == "'a.txt'"
    assert max(map(len, map(show, ["x" * 1000, [1] * 1000, 10**400, nested]))) < 250
