"""Errors that the user can fix. Any other exception is a bug in jaxllm."""

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
    """A training run's loss, gradients or update are no longer finite."""

    exit_status = 1
