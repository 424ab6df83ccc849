"""Failures of a command: what is printed, and the exit status."""

import os
import sys
import tempfile
import traceback

from jaxllm.errors import UserError

WRONG_USE, INTERNAL, INTERRUPTED, CLOSED_PIPE = 2, 70, 130, 141

EXIT_STATUSES = """exit status:
  0    success
  1    a check failed, a checkpoint is wrong, or training diverged
  2    an argument, a config, a file or the installation is wrong
  70   internal error: a bug of jaxllm
  130  interrupted (Ctrl-C)
  141  the reader of the output has closed it, as `| head` does"""


def report(error: Exception, *, debug: bool) -> int:
    """Prints an error on stderr, with its traceback if asked; returns the exit status.

    The traceback of an internal error that is not printed is kept in a temporary file.
    """
    if debug:
        traceback.print_exception(error)
    if isinstance(error, UserError):
        _complain(str(error))
        return error.exit_status
    if _is_of_the_machine(error):
        _complain(str(error) or type(error).__name__)
        return WRONG_USE
    _complain(f"internal error: {type(error).__name__}: {error}")
    if not debug:
        _complain(f"the traceback is in {_keep_traceback(error)}")
    _complain("this is a bug" if debug else "this is a bug; rerun with --debug to see it here")
    return INTERNAL


def interrupted() -> int:
    """Says that the user stopped the command; returns the exit status."""
    _complain("interrupted")
    return INTERRUPTED


def closed_pipe() -> int:
    """Discards what is still to be printed, which nobody reads; returns the exit status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return CLOSED_PIPE


def _is_of_the_machine(error: Exception) -> bool:
    """Whether the operating system or a device refused: a file, space, memory, a connection."""
    refused = isinstance(error, OSError) and error.errno is not None
    return refused or isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _complain(text: str) -> None:
    for line in text.splitlines():
        print(f"jaxllm: {line}", file=sys.stderr)


def _keep_traceback(error: Exception) -> str:
    with tempfile.NamedTemporaryFile(
        "w", prefix="jaxllm-", suffix=".traceback", encoding="utf-8", delete=False
    ) as file:
        traceback.print_exception(error, file=file)
    return file.name
