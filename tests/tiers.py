"""Tiers of tests: `make test` runs examples of each kind, `make test-exhaustive` more of them, and
`make test-campaigns` all the others.

A test is of the first tier unless it is marked: `exhaustive` for the second, `campaign` for the
third.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest


def examples(values: Iterable[Any], *kept: Any) -> list[Any]:
    """Returns all values as test parameters, those that are not `kept` marked as exhaustive.

    A value is a name or, for several arguments, a tuple. At least one must be kept.
    """
    params = [value if value in kept else exhaustive([value])[0] for value in values]
    unknown = [value for value in kept if value not in params]
    assert kept
    assert not unknown, f"no such parameters: {unknown}"
    return params


def exhaustive(values: Iterable[Any]) -> list[Any]:
    """Returns all values as test parameters that are marked as exhaustive."""
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.exhaustive
        )
        for value in values
    ]


def in_tiers(values: Iterable[Any], tier_of: Callable[[Any], str]) -> list[Any]:
    """Returns names as test parameters, each marked with its tier: "", exhaustive or campaign."""
    marks = {"": (), **{tier: getattr(pytest.mark, tier) for tier in ("exhaustive", "campaign")}}
    return [pytest.param(value, marks=marks[tier_of(value)]) for value in values]


def divide_cases(items: Sequence[pytest.Item]) -> None:
    """Divides the cases of each parametrized test marked `cases` between the tiers.

    `@pytest.mark.cases(3)` leaves 3 cases in `make test` and marks the others exhaustive;
    `exhaustive=5` leaves 5 of these and marks the rest as campaigns. Cases are taken evenly spread.
    """
    functions = defaultdict(list)
    for item in items:
        if (marker := item.get_closest_marker("cases")) is not None:
            functions[item.nodeid.partition("[")[0]].append((item, marker))
    for cases in functions.values():
        own, marker = [item for item, _ in cases], cases[0][1]
        quick = [item for item in own if item.get_closest_marker("exhaustive") is None]
        num_quick, num_exhaustive = _counts(*marker.args, **marker.kwargs)
        for item in _others(quick, num_quick):
            item.add_marker("exhaustive")
        later = [item for item in own if item.get_closest_marker("exhaustive") is not None]
        for item in _others(later, num_exhaustive):
            item.add_marker("campaign")


def _counts(quick: int, exhaustive: int | None = None) -> tuple[int, int | None]:
    """Returns the arguments of a marker; any others are an error."""
    return quick, exhaustive


def _others(items: Sequence[pytest.Item], count: int | None) -> list[pytest.Item]:
    """Returns all but `count` items, which are evenly spread; none if no number is given."""
    if count is None or count >= len(items):
        return []
    kept = {at * len(items) // count for at in range(count)}
    return [item for at, item in enumerate(items) if at not in kept]
