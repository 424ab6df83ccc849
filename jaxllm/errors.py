"""Errors that the user can fix. Any other exception is a bug in jaxllm."""

import difflib
from collections.abc import Iterable
from typing import ClassVar


class UserError(ValueError):
    """An invalid argument, file, config or installation.

    The message names what is wrong, one line per problem. Commands print the message without a
    traceback and exit with `exit_status`; they report any other exception as an internal error.
    """

    exit_status: ClassVar[int] = 2


class MissingFileError(UserError, FileNotFoundError):
    """A file that does not exist, or a file pattern that matches nothing."""


class MissingPackageError(UserError, ModuleNotFoundError):
    """An optional package that a command needs is not installed."""


class NonFiniteError(UserError, FloatingPointError):
    """The loss or the gradients of a training run are no longer finite."""

    exit_status = 1


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that `name` probably misspells, or None."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns a clause that suggests the nearest known name, or an empty string."""
    meant = nearest(name, known)
    return f"; did you mean {meant!r}?" if meant else ""
