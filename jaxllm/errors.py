"""Errors that are the user's to mend; every other exception is a bug of ours."""

from typing import ClassVar


class UserError(ValueError):
    """A wrong argument, file, config or installation; the message names it, one line per problem.

    The commands print the message alone and exit with `exit_status`. They report any other
    exception as an internal error.
    """

    exit_status: ClassVar[int] = 2


class MissingFileError(UserError, FileNotFoundError):
    """A file that the user named, or a pattern, that leads to no file."""


class MissingPackageError(UserError, ModuleNotFoundError):
    """An optional package that a command needs and that is not installed."""


class NonFiniteError(UserError, FloatingPointError):
    """A training run whose loss, gradients or update are no longer finite."""

    exit_status = 1
