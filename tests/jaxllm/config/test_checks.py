"""Validation helpers of the config classes: valid values pass, messages are complete."""

import dataclasses
from typing import Literal

import pytest

from jaxllm.config.checks import check_choices, check_counts, check_positive


@dataclasses.dataclass
class Part:
    kind: Literal["a", "b"] = "a"
    count: int | None = 1
    rate: float | None = 0.5


def test_valid_values_and_none_pass():
    for part in (Part(), Part(kind="b", count=None, rate=None)):
        check_choices(part, "part.")
        check_counts(part, "count", prefix="part.")
        check_positive(part, "rate", prefix="part.")


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda part: check_choices(part, "part."), "^part.kind='c' is not one of a, b$"),
        (lambda part: check_counts(part, "count", prefix="part."), "^part.count=0 is less than 1$"),
        (
            lambda part: check_positive(part, "rate", prefix="part."),
            "^part.rate=0.0 is not positive$",
        ),
        (lambda part: check_counts(part, "count"), "^count=0 is less than 1$"),
    ],
)
def test_message_gives_full_name_value_and_allowed_values(check, message):
    with pytest.raises(ValueError, match=message):
        check(Part(kind="c", count=0, rate=0.0))
