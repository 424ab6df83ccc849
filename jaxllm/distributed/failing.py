"""One process that fails ends all of them, with its message, instead of leaving them waiting.

A process that has failed says so in the key-value store of JAX's coordinator. A thread in every
process waits for that: the process may hang in a collective that will never complete.
"""

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import jax

from .coordinator import joined_job
from .lost_process import watch_stderr

FAILURE, ENDING = "jaxllm/failure", "jaxllm/ending/"  # the keys of the message and of who ends
WAIT_S = 10  # for the other processes to read the message before the coordinator ends
POLL_S = 1.0
ANSWER_S = 1.5  # three times this is less than a thread that aborts is delayed by, see lost_process
UNREPORTED = 70  # the exit status if the report of an error fails, that of internal errors


class FailedElsewhereError(Exception):
    """The error of a process that fails because another one has, whose own error says why."""


T = TypeVar("T")
Report = Callable[[BaseException], tuple[str, int]]  # prints an error; returns it, and the status

_reports: list[Report] = []  # how this process reports its failure, once it has joined a job
_flushes: list[Callable[[], None]] = []  # what this process does before it ends
_ending = threading.RLock()  # taken by the thread that says why this process ends


def watch(report: Report) -> None:
    """Ends this process if another one fails or is lost; from now on `fail` ends the others.

    Args:
        report: prints an error of this process and returns its text and its exit status.
    """
    _reports[:] = [report]
    left = threading.Event()
    thread = threading.Thread(target=_wait_for_failure, args=(left,), daemon=True)
    thread.start()
    _flushes[:] = [watch_stderr(joined_job().process_id, _ending)]
    atexit.register(_flushes[0])
    atexit.register(_leave, left, thread)  # first, as functions run in reverse order


def fail(error: BaseException) -> None:
    """Reports an error and ends all processes; returns if this process runs alone."""
    if not _reports:
        return
    patience = (
        WAIT_S if isinstance(error, FailedElsewhereError) else 0
    )  # the reason is yet to be told
    if (other := _reason_elsewhere(patience)) is not None:  # may be why this process fails
        _end_with(other)
    _begin_to_end()
    try:
        text, status = _reports[0](error)
    except BaseException:  # such as stderr that cannot be written, or Ctrl-C
        text, status = f"{type(error).__name__}: {error}", UNREPORTED
    job = joined_job()
    message = f"{job.process_id}\n{status}\n{text}"
    _soon(lambda: job.client.key_value_set(FAILURE, message))  # fails if another one was first
    _end(status)


@contextmanager
def failing_together() -> Iterator[None]:
    """Context in which an error ends all processes at once.

    Without it, what is left on the way to the caller may wait for the other processes.
    """
    try:
        yield
    except BaseException as error:
        fail(error)
        raise


def _leave(left: threading.Event, thread: threading.Thread) -> None:
    """Leaves the job, while a process that has not finished may still fail."""
    jax.distributed.shutdown()
    left.set()
    thread.join()  # a thread inside a call of the coordinator would crash when Python ends


def _wait_for_failure(left: threading.Event) -> None:
    while not left.wait(POLL_S):
        if (message := _failure_of_another()) is not None:
            _end_with(message)


def _reason_elsewhere(patience: float) -> str | None:
    """Returns `_failure_of_another`, asked for until there is one or `patience` seconds pass."""
    deadline = time.monotonic() + patience
    while (message := _soon(_failure_of_another)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return message


def _failure_of_another() -> str | None:
    """Returns the message of a process that has failed before this one, or None."""
    job = joined_job()
    try:
        message: str = job.client.key_value_try_get(FAILURE)
    except Exception:  # nothing has failed, or the coordinator does not answer
        return None
    return None if message.startswith(f"{job.process_id}\n") else message


def _end_with(message: str) -> None:
    """Ends this process with the message and the status of another one that has failed."""
    _begin_to_end()
    rank, status, text = message.split("\n", 2)
    with suppress(OSError):
        for line in text.splitlines():
            print(f"jaxllm: process {rank} failed: {line}", file=sys.stderr)
    _end(int(status))


def _begin_to_end() -> None:
    """Lets the first thread that ends this process go on; all others wait until it has ended."""
    _ending.acquire()


def _end(status: int) -> None:
    """Ends this process; leaving Python in the usual way would wait for all other processes."""
    try:
        if joined_job().process_id == 0:
            _wait_for_others()
        else:
            _soon(_say_that_this_ends)
    finally:  # also after Ctrl-C
        try:
            for flush in (*_flushes, sys.stdout.flush, sys.stderr.flush):
                with suppress(OSError, ValueError):  # closed, or on a full disk
                    flush()
        finally:
            os._exit(status)


def _wait_for_others() -> None:
    """In process 0, which hosts the coordinator, waits until the others have read the message."""
    job, deadline = joined_job(), time.monotonic() + WAIT_S
    with suppress(Exception):
        _say_that_this_ends()
        while time.monotonic() < deadline:
            if len(job.client.key_value_dir_get(ENDING)) == job.num_processes:
                break
            time.sleep(0.1)


def _say_that_this_ends() -> None:
    job = joined_job()
    job.client.key_value_set(f"{ENDING}{job.process_id}", "", allow_overwrite=True)


def _soon(ask: Callable[[], T]) -> T | None:
    """Returns what the coordinator says; None if that is an error, or takes longer than ANSWER_S.

    If the coordinator was killed, a call may take longer than jax lets this process live.
    """
    answers: list[T] = []

    def run() -> None:
        with suppress(Exception):
            answers.append(ask())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    return answers[0] if answers else None
