"""Multi-process tests: local processes connected through JAX's distributed runtime."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence


def run_together(
    *commands: Sequence[str], devices: int, by_slurm: bool = False, **environment: str
) -> list[tuple[str, str]]:
    """Runs Python processes concurrently; all must exit with status 0.

    Args:
        *commands: the arguments of each process. Several processes form one JAX cluster; a single
            one runs alone.
        devices: the number of virtual CPU devices of each process.
        by_slurm: whether the cluster is told by the variables of Slurm, not by those of JAX.
        **environment: further environment variables.

    Returns:
        stdout and stderr of each process.
    """
    ranks: list[dict[str, str]] = [{}]
    if len(commands) > 1:
        shared = slurm_job(len(commands)) if by_slurm else cluster(len(commands))
        names = ("SLURM_PROCID", "SLURM_LOCALID") if by_slurm else ("JAX_PROCESS_ID",)
        ranks = [shared | dict.fromkeys(names, str(rank)) for rank in range(len(commands))]
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


def slurm_job(count: int) -> dict[str, str]:
    """Returns the variables that Slurm sets for all tasks of a step on one machine.

    jax takes the coordinator's port from the number of the job.
    """
    return {
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_STEP_NUM_NODES": "1",
    }


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
