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
from contextlib import contextmanager
from typing import Any

import jax

FAILURE, ENDING = "jaxllm/failure", "jaxllm/ending/"  # the keys of the message and of who ends
WAIT_S = 10  # for the other processes to read the message before the coordinator ends
POLL_S = 1.0

Report = Callable[[BaseException], tuple[str, int]]  # prints an error; returns it, and the status

_reports: list[Report] = []  # how this process reports its failure, once it has joined a job


def watch(report: Report) -> None:
    """Ends this process if another one fails; from now on `fail` ends the others.

    Args:
        report: prints an error of this process and returns its text and its exit status.
    """
    _reports[:] = [report]
    left = threading.Event()
    thread = threading.Thread(target=_wait_for_failure, args=(left,), daemon=True)
    thread.start()
    atexit.register(_leave, left, thread)


def fail(error: BaseException) -> None:
    """Reports an error and ends all processes; returns if this process runs alone."""
    if not _reports:
        return
    text, status = _reports[0](error)
    try:
        message = f"{jax.process_index()}\n{status}\n{text}"
        _client().key_value_set(FAILURE, message)
    except Exception:  # another process has failed first, or the coordinator is gone
        pass
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
        try:
            message = _client().key_value_try_get(FAILURE)
        except Exception as error:
            if "NOT_FOUND" in str(error):
                continue
            return  # the job has ended; if it broke, jax says so
        rank, status, text = message.split("\n", 2)
        if int(rank) != jax.process_index():
            for line in text.splitlines():
                print(f"jaxllm: process {rank} failed: {line}", file=sys.stderr)
            _end(int(status))
        return


def _end(status: int) -> None:
    """Ends this process without waiting for the others, as leaving Python would.

    Process 0 hosts the coordinator, so it ends after the others have read the message.
    """
    try:
        _client().key_value_set(f"{ENDING}{jax.process_index()}", "", allow_overwrite=True)
        deadline = time.monotonic() + WAIT_S
        while jax.process_index() == 0 and time.monotonic() < deadline:
            if len(_client().key_value_dir_get(ENDING)) == jax.process_count():
                break
            time.sleep(0.1)
    except Exception:  # the coordinator is gone
        pass
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def _client() -> Any:
    from jax._src import distributed  # jax exports no name for its key-value store

    return distributed.global_state.client
