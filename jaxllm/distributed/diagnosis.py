"""Diagnosis of a job of several processes: the classic mistakes, each in one line."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .host_facts import HostFacts

MOST_SKEW_S = 5.0  # between clocks; more breaks the signatures of requests to storage
LEAST_SHM = 2**30  # bytes of /dev/shm that NCCL uses between the GPUs of a host


def find_problems(facts: Sequence[HostFacts]) -> list[str]:
    """Returns what is wrong with a job, one line each; empty if nothing is.

    Args:
        facts: of every process, in their order.
    """
    checks: tuple[Callable[[Sequence[HostFacts]], Iterator[str]], ...]
    checks = (_own, _versions, _devices, _memory, _clocks, _folder, _files)
    return [problem for check in checks for problem in check(facts)]


def _own(facts: Sequence[HostFacts]) -> Iterator[str]:
    """Yields the problems that processes found by themselves, such as a mesh that does not fit.

    A problem of several processes is one line, which names them unless all have it.
    """
    problems: dict[str, list[HostFacts]] = {}
    for each in facts:
        for line in (each.problem or "").splitlines():
            problems.setdefault(line, []).append(each)
    for line, those in problems.items():
        yield line if len(those) == len(facts) else f"{_names(those)}: {line}"


def _versions(facts: Sequence[HostFacts]) -> Iterator[str]:
    for name in dict.fromkeys(name for each in facts for name in each.versions):
        if differing := _differing(facts, lambda each: each.versions.get(name)):  # noqa: B023
            yield f"{name} differs: {differing}; install the same on every host"


def _devices(facts: Sequence[HostFacts]) -> Iterator[str]:
    if differing := _differing(facts, lambda each: each.device_kind):
        yield f"the kind of device differs: {differing}; use hosts of one kind"
    if differing := _differing(facts, lambda each: each.num_devices):
        yield (
            f"the number of devices differs: {differing}; see CUDA_VISIBLE_DEVICES, "
            "JAX_NUM_CPU_DEVICES and what the scheduler gives each task"
        )


def _memory(facts: Sequence[HostFacts]) -> Iterator[str]:
    small = [
        each
        for each in facts
        if each.platform in ("gpu", "cuda", "rocm")
        and each.num_devices > 1
        and each.shm_bytes is not None
        and each.shm_bytes < LEAST_SHM
    ]
    if small:
        size = min(each.shm_bytes or 0 for each in small) / 2**20
        yield (
            f"{_names(small)}: /dev/shm has {size:.0f} MiB, and NCCL needs 1 GiB: give the "
            "container --shm-size=8g, or in Kubernetes an emptyDir with medium: Memory"
        )


def _clocks(facts: Sequence[HostFacts]) -> Iterator[str]:
    first, last = (pick(facts, key=lambda each: each.clock) for pick in (min, max))
    if (skew := last.clock - first.clock) > MOST_SKEW_S:
        yield (
            f"the clocks differ by {skew:.1f} s: {last.name} is ahead of {first.name}; let "
            "chrony or NTP set both"
        )


def _folder(facts: Sequence[HostFacts]) -> Iterator[str]:
    if blind := [each for each in facts if each.sees_folder is False]:
        yield (
            f"{_names(blind)}: the run's folder is not the one of {facts[0].name}: give --output "
            "on a file system that all hosts share, or gs://BUCKET/RUN or s3://BUCKET/RUN"
        )


def _files(facts: Sequence[HostFacts]) -> Iterator[str]:
    """Compares the data of the processes that could read their config."""
    found = {each.process: each.files for each in facts if each.files is not None}
    those = [each for each in facts if each.process in found]
    for path in dict.fromkeys(path for files in found.values() for path in files):

        def size(each: HostFacts) -> str:
            files = found[each.process]
            return f"{files[path]:,} bytes" if path in files else "missing"  # noqa: B023

        if differing := _differing(those, size):
            yield f"the data differ: {path}: {differing}; every host needs the same data"


def _differing(facts: Sequence[HostFacts], value: Callable[[HostFacts], Any]) -> str:
    """Describes who has which value, or returns "" if all have the same."""
    by_value: dict[Any, list[HostFacts]] = {}
    for each in facts:
        by_value.setdefault(value(each), []).append(each)
    if len(by_value) == 1:
        return ""
    return ", ".join(f"{found} in {_names(those)}" for found, those in by_value.items())


def _names(facts: Sequence[HostFacts]) -> str:
    """The processes, with the hosts if they are few."""
    if len(facts) <= 2:
        return " and ".join(each.name for each in facts)
    numbers = ", ".join(str(each.process) for each in facts[:8])
    return f"processes {numbers}" + (f" and {len(facts) - 8} more" if len(facts) > 8 else "")
