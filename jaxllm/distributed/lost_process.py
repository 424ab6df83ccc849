"""A lost process, such as one that was killed, ends the others with one line and a status.

JAX notices that its heartbeats are missing, prints a fatal message with a stack trace, and aborts.
Python cannot replace that callback: the status that it receives has no Python type. So this module
reads what C++ code prints on stderr, and delays the abort until it has read the message.
"""

import ctypes
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

FATAL = b"JAX distributed service detected fatal errors"
END_OF_MESSAGE = b"*** Check failure"  # jax's message has several lines; a stack trace follows
COLLECTIVE = "gloo|nccl|rccl|coordination ?service"  # in errors of work between processes
BROKEN = (  # in those of them that another process has caused by its end
    "connection (was )?(closed|reset|refused|aborted|lost)|by peer|broken pipe|socket closed|"
    "not connected|"
    "remote process exited|network error|time(d )?out|unavailable|heartbeat"
)
CHUNK = 1 << 16  # bytes that are read at once
WAIT_S = 1.0  # for the rest of a message, and for a full pipe to be read
COORDINATOR_WAIT_S = 3.0  # for the other processes to be told who was lost, by the coordinator
STATUS = 2


def watch_stderr(process: int, ending: "threading.RLock") -> Callable[[], None]:
    """Ends this process if jax finds another one of its job lost.

    `sys.stderr` goes on to where stderr went before.

    Args:
        process: the number of this process.
        ending: taken by whatever ends this process; if it is taken, that end is not disturbed.

    Returns:
        A function that ends the watch, once what was printed before is copied.
    """
    try:
        shown = os.dup(2)
    except OSError:  # stderr is closed
        return lambda: None
    _delay_abort()
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(shown), "w", buffering=1, errors="backslashreplace")
    thread = threading.Thread(target=_copy, args=(reading, shown, process, ending), daemon=True)
    thread.start()

    def leave() -> None:
        os.dup2(shown, 2)  # closes the pipe
        thread.join(WAIT_S)

    return leave


def explain(message: str) -> str:
    """Returns the fatal message of jax as one line that names the lost processes."""
    found = re.search(r"unhealthy[^\n]*:\n(.*?)\nThe tasks", message, re.DOTALL)
    lost = re.findall(r"\d+", found[1]) if found else []
    if "Failed to send RPC to coordination service" in message:
        lost = ["0"]  # it hosts the coordinator
    if not lost:
        status = " ".join(message.partition("absl::Status: ")[2].split())
        return f"the job of this process broke: {status}"
    names = f"process {lost[0]} was" if len(lost) == 1 else f"processes {', '.join(lost)} were"
    return (
        f"{names} lost: killed, out of memory, or cut off from the network; this process ends, "
        "too (the scheduler's log may say why)"
    )


def describe_broken_collective(error: BaseException) -> str | None:
    """Returns a line about an error of jax that comes from a broken connection, or None."""
    text = " ".join(str(error).split())
    if type(error).__name__ != "JaxRuntimeError":
        return None
    if not all(re.search(words, text, re.IGNORECASE) for words in (COLLECTIVE, BROKEN)):
        return None
    return f"the connection to another process broke: it has ended or was killed ({text})"


def _copy(reading: int, shown: int, process: int, ending: "threading.RLock") -> None:
    """Copies stderr; ends this process at the fatal message."""
    end = b""  # of what was read before, in case the message arrives in several parts
    while chunk := os.read(reading, CHUNK):
        before, fatal, message = (end + chunk).partition(FATAL)
        if fatal:
            text = _rest_of_message(reading, message).decode(errors="replace")
            _show(shown, before[len(end) : before.rfind(b"\n") + 1])
            if not ending.acquire(blocking=False):
                break  # this process is ending with a message and a status of its own
            _show(shown, f"jaxllm: {explain(text)}\n".encode())
            if process == 0:
                time.sleep(COORDINATOR_WAIT_S)
            os._exit(STATUS)
        _show(shown, chunk)
        end = (end + chunk)[-(len(FATAL) - 1) :]
    while os.read(reading, CHUNK):  # so that nothing waits for a full pipe
        pass


def _rest_of_message(reading: int, message: bytes) -> bytes:
    """Returns the fatal message from here to the stack trace, or as much of it as arrives."""
    while END_OF_MESSAGE not in message and select.select([reading], [], [], WAIT_S)[0]:
        if not (more := os.read(reading, CHUNK)):  # the other end is closed
            break
        message += more
    return message.partition(END_OF_MESSAGE)[0]


def _show(shown: int, text: bytes) -> None:
    """Writes a text; drops what cannot be written soon, as the watch must not wait for it."""
    with suppress(OSError):
        while text and select.select([], [shown], [], WAIT_S)[1]:
            text = text[os.write(shown, text[: select.PIPE_BUF]) :]  # so much does not wait


def _delay_abort() -> None:
    """Makes a thread that aborts sleep before, for as many seconds as SIGABRT has a number: 6.

    A handler in Python would need the GIL and memory, which code that aborts may hold. `sleep` is
    safe in a signal handler; when it returns, the abort goes on.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
