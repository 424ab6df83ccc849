"""Lost processes: jax's fatal message as one line and a status, instead of an abort."""

import os
import select
import subprocess
import sys
import threading
import time

from jaxllm.distributed import lost_process
from jaxllm.distributed.lost_process import STATUS, _copy, describe_broken_collective, explain

# What jax 0.10.2 prints about a process without heartbeats, and when the coordinator is gone.
FATAL = """F1130 16:46:35.022611   28502 client.h:80] Terminating process because the JAX \
distributed service detected fatal errors. This most likely indicates that another task died. \
absl::Status: UNAVAILABLE: """
SILENT = """The following tasks are unhealthy (stopped sending heartbeats):
{}
The tasks have crashed. Check the task logs for an earlier error.
*** Check failure stack trace: ***
    @     0x7f4c42a40634  absl::log_internal::LogMessage::SendToLog()
"""
COORDINATOR = """Failed to send RPC to coordination service. Either the leader task died.
*** Check failure stack trace: ***
"""
# Prints from C, as jax does, then aborts.
ABORTING = """
import ctypes, os, sys, threading
from jaxllm.distributed.lost_process import watch_stderr
leave = watch_stderr({process}, threading.RLock())
print("of Python", file=sys.stderr)
os.write(2, b"of C++\\n")
if {fatal!r}:
    os.write(2, {fatal!r}.encode())
    ctypes.CDLL(None).abort()
leave()
os.write(2, b"later\\n")
"""


def run(process: int, fatal: str) -> subprocess.CompletedProcess[str]:
    code = ABORTING.format(process=process, fatal=fatal)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_fatal_message_becomes_one_line_and_a_status():
    done = run(1, FATAL + SILENT.format(3))
    assert done.returncode == STATUS
    lines = done.stderr.splitlines()
    assert sorted(lines[:2]) == ["of C++", "of Python"]
    assert lines[2].startswith("jaxllm: process 3 was lost: killed, out of memory")
    assert len(lines) == 3


def test_other_output_is_passed_on_and_the_watch_ends():
    done = run(0, "")
    assert done.returncode == 0
    assert sorted(done.stderr.splitlines()) == ["later", "of C++", "of Python"]


def copied(
    *chunks: bytes, shown: int, ending: "threading.RLock | None" = None, wait_s: float = 0.05
) -> None:
    """Copies chunks that arrive one after the other."""
    reading, writing = os.pipe()
    ending = threading.RLock() if ending is None else ending
    thread = threading.Thread(target=_copy, args=(reading, shown, 1, ending), daemon=True)
    thread.start()
    for chunk in chunks:
        for at in range(0, len(chunk), select.PIPE_BUF):
            assert select.select([], [writing], [], 5)[1], "nobody reads what is copied"
            os.write(writing, chunk[at : at + select.PIPE_BUF])
        time.sleep(wait_s)  # so that it is read alone
    os.close(writing)
    thread.join(5)
    assert not thread.is_alive()


def test_a_message_in_many_parts_is_found(monkeypatch, tmp_path):
    ended: list[int] = []
    monkeypatch.setattr(lost_process.os, "_exit", ended.append)
    text = FATAL.encode()
    parts = [text[:20], *(text[at : at + 10] for at in range(20, 160, 10)), text[160:]]
    with (tmp_path / "shown").open("wb") as shown:
        copied(*parts, SILENT.format(3).encode(), shown=shown.fileno())
    assert ended[:1] == [STATUS]


def test_another_end_in_progress_keeps_its_status(monkeypatch, tmp_path):
    ended: list[int] = []
    monkeypatch.setattr(lost_process.os, "_exit", ended.append)
    ending = threading.RLock()
    text = (FATAL + SILENT.format(3)).encode()
    with ending, (tmp_path / "shown").open("wb") as shown:
        copied(b"before\n", text, shown=shown.fileno(), ending=ending)
    assert ended == []
    assert (tmp_path / "shown").read_bytes() == b"before\n"


def test_what_cannot_be_written_is_dropped():
    with open("/dev/full", "wb") as full:
        copied(b"one\n", b"two\n", shown=full.fileno())


def test_a_message_is_found_while_nobody_reads_stderr(monkeypatch):
    ended: list[int] = []
    monkeypatch.setattr(lost_process.os, "_exit", ended.append)
    monkeypatch.setattr(lost_process, "WAIT_S", 0.1)
    reading, shown = os.pipe()  # which takes 64 KiB
    rest = (FATAL + SILENT.format(3)).encode()
    copied(*[b"x" * 30_000] * 4, rest, shown=shown, wait_s=0)
    assert ended[:1] == [STATUS]
    os.close(reading)


def test_a_message_whose_end_never_arrives_is_taken_as_it_is(monkeypatch, tmp_path):
    ended: list[int] = []
    monkeypatch.setattr(lost_process.os, "_exit", ended.append)
    with (tmp_path / "shown").open("wb") as shown:
        copied(FATAL.encode(), shown=shown.fileno(), wait_s=0)
    assert ended[:1] == [STATUS]


def test_nothing_waits_for_the_pipe_of_a_process_that_ends(tmp_path):
    ending = threading.RLock()
    text = (FATAL + SILENT.format(3)).encode()
    with ending, (tmp_path / "shown").open("wb") as shown:
        copied(text, *[b"x" * 30_000] * 4, shown=shown.fileno(), ending=ending)


def test_the_lost_processes_are_named():
    assert explain(FATAL + SILENT.format("2, 5")).startswith("processes 2, 5 were lost: ")
    assert explain(FATAL + COORDINATOR).startswith("process 0 was lost: ")
    other = explain(FATAL + "INTERNAL: a new\nkind of error\n")
    assert other == "the job of this process broke: UNAVAILABLE: INTERNAL: a new kind of error"


def test_errors_of_broken_connections_are_told_from_others():
    class JaxRuntimeError(RuntimeError):
        pass

    text = "UNKNOWN: Gloo all-reduce failed: Read error:\nConnection reset by peer"
    line = describe_broken_collective(JaxRuntimeError(text))
    assert line is not None
    assert line.startswith("the connection to another process broke: ")
    assert "\n" not in line
    other = "INTERNAL: NCCL operation ncclCommInitRank failed: CUDA failure: out of memory"
    assert describe_broken_collective(JaxRuntimeError(other)) is None
    for lost in (
        "NCCL operation failed: remote process exited or there was a network error",
        "UNKNOWN: Gloo all-reduce failed: [external/gloo/pair.cc:547] Pair is not connected (5)",
        "UNKNOWN: Gloo AllGather failed: Application timeout caused pair closure",
    ):
        assert describe_broken_collective(JaxRuntimeError(lost)) is not None
    assert describe_broken_collective(JaxRuntimeError("INVALID_ARGUMENT: shapes")) is None
    assert describe_broken_collective(RuntimeError(text)) is None
