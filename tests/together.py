"""Multi-process tests: local processes connected through JAX's distributed runtime."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence


def run_together(
    *commands: Sequence[str], devices: int, **environment: str
) -> list[tuple[str, str]]:
    """Runs Python processes concurrently; all must exit with status 0.

    Args:
        *commands: the arguments of each process. Several processes form one JAX cluster; a single
            one runs alone.
        devices: the number of virtual CPU devices of each process.
        **environment: further environment variables.

    Returns:
        stdout and stderr of each process.
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
    outputs = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0] * len(started), outputs
    return outputs
