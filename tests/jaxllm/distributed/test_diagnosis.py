"""Diagnosis: each classic mistake is one line, and a sound job has none."""

import dataclasses

import pytest

from jaxllm.distributed.diagnosis import find_problems
from jaxllm.distributed.host_facts import HostFacts

GIB = 2**30


def facts(process: int, **changes: object) -> HostFacts:
    sound = HostFacts(
        process=process,
        host=f"node{process}",
        platform="gpu",
        device_kind="NVIDIA H100 80GB HBM3",
        num_devices=8,
        device_bytes=80 * GIB,
        host_bytes=512 * GIB,
        host_free_bytes=500 * GIB,
        shm_bytes=64 * GIB,
        clock=1000.0 + process / 100,
        versions={"jax": "0.10.2", "optax": "0.2.8"},
        sees_folder=True,
        files={"a.txt": 7},
    )
    return dataclasses.replace(sound, **changes)


def test_a_sound_job_has_no_problem():
    assert find_problems([facts(0), facts(1), facts(2)]) == []
    assert find_problems([facts(0)]) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"versions": {"jax": "0.10.1", "optax": "0.2.8"}},
            "jax differs: 0.10.2 in process 0 (node0), 0.10.1 in process 1 (node1); install",
        ),
        ({"versions": {"jax": "0.10.2"}}, "optax differs: 0.2.8 in process 0 (node0), None in"),
        ({"num_devices": 7}, "the number of devices differs: 8 in process 0 (node0), 7 in"),
        ({"device_kind": "NVIDIA A100"}, "the kind of device differs: NVIDIA H100 80GB HBM3 in"),
        ({"shm_bytes": 64 * 2**20}, "process 1 (node1): /dev/shm has 64 MiB, and NCCL needs 1"),
        ({"clock": 1009.0}, "the clocks differ by 9.0 s: process 1 (node1) is ahead of process 0"),
        ({"sees_folder": False}, "process 1 (node1): the run's folder is not the one of process 0"),
        ({"files": {}}, "the data differ: a.txt: 7 bytes in process 0 (node0), missing in"),
        ({"files": {"a.txt": 8}}, "the data differ: a.txt: 7 bytes in process 0 (node0), 8"),
        ({"problem": "no space"}, "process 1 (node1): no space"),
    ],
)
def test_each_mistake_is_one_line(changes, problem):
    [found] = find_problems([facts(0), facts(1, **changes)])
    assert found.startswith(problem)
    assert "\n" not in found


def test_what_all_found_is_said_once_and_many_processes_are_counted():
    wrong = "the mesh fsdp=4 needs 4 devices, but there are 24"
    assert find_problems([facts(i, problem=wrong) for i in range(3)]) == [wrong]
    many = [facts(i, clock=0.0, sees_folder=i == 0) for i in range(12)]
    [found] = find_problems(many)
    assert found.startswith("processes 1, 2, 3, 4, 5, 6, 7, 8 and 3 more: the run's folder")


def test_data_are_not_compared_with_those_of_a_process_without_a_config():
    [found] = find_problems([facts(0), facts(1, files=None, problem="run.yaml is missing")])
    assert found == "process 1 (node1): run.yaml is missing"


def test_shared_memory_does_not_matter_without_several_gpus():
    small = {"shm_bytes": 1}
    assert find_problems([facts(0, **small, platform="tpu")]) == []
    assert find_problems([facts(0, **small, num_devices=1)]) == []
