"""Error reporting of commands: messages on stderr and exit statuses."""

import os
import sys
import tempfile
import traceback
from contextlib import suppress

from jaxllm.errors import UserError
from jaxllm.untrusted.printable import shown

WRONG_USE, INTERNAL, INTERRUPTED, CLOSED_PIPE = 2, 70, 130, 141

EXIT_STATUSES = """exit status:
  0    success
  1    a check failed, a checkpoint is wrong, or training diverged
  2    an argument, a config, a file or the installation is wrong
  70   internal error: a bug in jaxllm
  130  interrupted (Ctrl-C)
  141  the output was closed by its reader, as in `| head`"""


def report(error: Exception, *, debug: bool) -> int:
    """Prints an error on stderr and returns the exit status; ends all processes of a job.

    Args:
        error: the exception that ended the command.
        debug: whether to print the traceback. Otherwise, that of an internal error is written to
            a temporary file.
    """
    _end_job(error)
    return report_failure(error, debug=debug)[1]


def interrupted(error: KeyboardInterrupt) -> int:
    """Reports that the user interrupted the command; returns the exit status."""
    _end_job(error)
    return report_failure(error, debug=False)[1]


def report_failure(error: BaseException, *, debug: bool) -> tuple[str, int]:
    """Prints an error on stderr; returns the text as shown and the exit status. See `report`."""
    if debug:
        traceback.print_exception(error)
    text, status = _explain(error, debug=debug)
    complain(text)
    return shown(text), status


def _explain(error: BaseException, *, debug: bool) -> tuple[str, int]:
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted", INTERRUPTED
    if isinstance(error, UserError):
        return str(error), error.exit_status
    if _is_of_the_machine(error):
        return str(error) or type(error).__name__, WRONG_USE
    if (broken := _broken_connection(error)) is not None:
        return broken, WRONG_USE
    if (problem := _device_problem()) is not None:
        return problem, WRONG_USE
    lines = [f"internal error: {type(error).__name__}: {error}"]
    if not debug:
        lines.append(f"the traceback is in {_keep_traceback(error)}")
    more = "" if debug else "; rerun with --debug to print the traceback"
    return "\n".join([*lines, f"this is a bug{more}"]), INTERNAL


def _end_job(error: BaseException) -> None:
    """If several processes work together, reports the error and ends all of them."""
    if (failing := sys.modules.get("jaxllm.distributed.failing")) is not None:
        failing.fail(error)


def _broken_connection(error: BaseException) -> str | None:
    """Returns a line about an error that comes from the end of another process, or None."""
    if (lost := sys.modules.get("jaxllm.distributed.lost_process")) is None:
        return None
    return lost.describe_broken_collective(error)


def closed_pipe() -> int:
    """Discards remaining output after its reader closed the pipe; returns the exit status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return CLOSED_PIPE


def _is_of_the_machine(error: BaseException) -> bool:
    """Whether the operating system or a device failed: a file, disk space, memory, a connection."""
    refused = isinstance(error, OSError) and error.errno is not None
    return refused or isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _device_problem() -> str | None:
    """Returns why JAX, if it was imported, finds no device, and what to do; None if it has some."""
    if (jax := sys.modules.get("jax")) is None:
        return None
    try:
        jax.devices()
    except Exception as error:  # RuntimeError, or AssertionError without a text
        asked, reason = jax.config.jax_platforms or "", f": {error}" if str(error) else ""
        return (
            f"JAX finds no device for JAX_PLATFORMS={asked!r}{reason}\n"
            "set JAX_PLATFORMS=cpu, or install JAX for this machine's accelerator: "
            "https://docs.jax.dev/en/latest/installation.html"
        )
    return None


def complain(text: str) -> None:
    """Prints lines on stderr, if that can be written; nothing if there are none."""
    with suppress(OSError):  # such as a log on a full disk
        for line in shown(text).split("\n") if text else ():
            print(f"jaxllm: {line}", file=sys.stderr)


def _keep_traceback(error: BaseException) -> str:
    with tempfile.NamedTemporaryFile(
        "w", prefix="jaxllm-", suffix=".traceback", encoding="utf-8", delete=False
    ) as file:
        traceback.print_exception(error, file=file)
    return file.name
