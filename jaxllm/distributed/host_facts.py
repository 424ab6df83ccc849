"""Facts about this process that `doctor` compares across a job."""

import dataclasses
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import jax

from .agreement import versions
from .coordinator import joined_job


@dataclasses.dataclass(frozen=True)
class HostFacts:
    """One process of a job: where it runs, what it has, and what it sees."""

    process: int
    host: str
    platform: str  # "cpu", "gpu" or "tpu"
    device_kind: str
    num_devices: int
    device_bytes: int | None  # memory of one device; None: it does not tell
    host_bytes: int | None  # memory that this process may use
    host_free_bytes: int | None
    shm_bytes: int | None  # size of /dev/shm; None: there is none
    clock: float  # seconds since 1970, read when all processes read theirs
    versions: dict[str, str]
    coordinator: str | None = None
    rows: tuple[int, ...] = ()  # of each batch, that this process reads
    sees_folder: bool | None = None  # whether it sees the run's folder as process 0 does
    files: dict[str, int] | None = None  # bytes of the data, by path; None: it has read no config
    problem: str | None = None  # what it found wrong by itself

    @property
    def name(self) -> str:
        """The process and its host, for messages."""
        return f"process {self.process} ({self.host})"


def collect_facts(**others: Any) -> HostFacts:
    """Returns the facts about this process.

    Args:
        **others: fields that only the caller knows.
    """
    device = jax.local_devices()[0]
    total, free = host_memory()
    return HostFacts(
        process=jax.process_index(),
        host=socket.gethostname(),
        platform=device.platform,
        device_kind=device.device_kind,
        num_devices=jax.local_device_count(),
        device_bytes=(device.memory_stats() or {}).get("bytes_limit"),
        host_bytes=total,
        host_free_bytes=free,
        shm_bytes=_shared_memory(),
        clock=time.time(),
        versions=versions(),
        **others,
    )


def host_memory(
    meminfo: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup/memory.max")
) -> tuple[int | None, int | None]:
    """Returns the memory of this host and what is free of it, within the limit of a container.

    Args:
        meminfo: the file in which Linux tells it.
        limit: the file with the limit of this process's control group.
    """
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        total, free = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return None, None
    try:
        most = int(limit.read_text())  # "max" without a limit
    except (OSError, ValueError):
        return total, free
    return min(total, most), min(free, most)


def _shared_memory() -> int | None:
    try:
        return shutil.disk_usage("/dev/shm").total
    except OSError:
        return None


def sees_folder(folder: Any, nonce: str) -> bool:
    """Whether a file that process 0 has written into a folder is there with its content."""
    try:
        return (folder / probe_name(nonce)).read_text() == nonce
    except Exception:  # of any class on an object store
        return False


def probe_name(nonce: str) -> str:
    """The name of the file by which processes find out if they see the same folder."""
    return f".doctor-{nonce}"


def coordinator_address() -> str | None:
    """Returns where the processes of this job meet; None if this process is alone."""
    job = joined_job()
    address = job.coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    return address if job.num_processes > 1 else None
