"""Progress of a comparison: announces every run of a model to whoever follows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

# Gets what is run next, and how many runs there are in all, or None if that is not known yet.
Follower = Callable[[str, int | None], None]

_follower: ContextVar[Follower | None] = ContextVar("_follower", default=None)
_total: ContextVar[int | None] = ContextVar("_total", default=None)


@contextmanager
def following(follower: Follower) -> Iterator[None]:
    """Within this context, `follower` is told of every run before it starts."""
    with _set(_follower, follower):
        yield


@contextmanager
def expecting(runs: int, *, besides: bool = False) -> Iterator[None]:
    """Within this context, there are this many runs, or as many besides those expected before."""
    with _set(_total, runs + (_total.get() or 0) * besides):
        yield


def announce(run: str) -> None:
    """Tells the follower, if there is one, what is run next."""
    if follower := _follower.get():
        follower(run, _total.get())


@contextmanager
def _set(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    before = variable.set(value)
    try:
        yield
    finally:
        variable.reset(before)
