"""Processes on this machine that find each other as those of a pod do."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence


def run_together(
    *commands: Sequence[str], devices: int, **environment: str
) -> list[tuple[str, str]]:
    """Python with these arguments, at once, each with so many CPU devices: stdout and stderr.

    What is alone joins nobody. All must end well.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), **environment}
    if len(commands) > 1:
        given["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
        given["JAX_NUM_PROCESSES"] = str(len(commands))
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            env={**given, "JAX_PROCESS_ID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, command in enumerate(commands)
    ]
    said = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0] * len(started), said
    return said
