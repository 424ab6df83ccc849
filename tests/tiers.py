"""Tiers of tests: `make test` runs examples of each kind, `make test-exhaustive` the rest."""

from collections.abc import Iterable
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
