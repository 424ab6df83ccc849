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
    ranks: list[dict[str, str]] = [{}]
    if len(commands) > 1:
        shared = cluster(len(commands))
        ranks = [{**shared, "JAX_PROCESS_ID": str(rank)} for rank in range(len(commands))]
    started = [
        start(*command, devices=devices, **{**variables, **environment})
        for command, variables in zip(commands, ranks, strict=True)
    ]
    outputs = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0] * len(started), outputs
    return outputs


def cluster(count: int) -> dict[str, str]:
    """Returns the environment variables, but `JAX_PROCESS_ID`, of a cluster on this machine."""
    address = f"127.0.0.1:{free_port()}"
    return {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}


def free_port() -> int:
    """Returns a port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(*arguments: str, devices: int, **environment: str) -> subprocess.Popen[str]:
    """Starts a Python process with virtual CPU devices."""
    given = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), **environment}
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
