"""Jobs of several processes are recognized by the variables of schedulers and launchers."""

import pytest
from jax._src.clusters import cloud_tpu_cluster

from jaxllm.cli import main
from jaxllm.distributed.schedulers import Job, find_job, is_known_to_jax

SLURM = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node1", "SLURM_LOCALID": "0"}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}


@pytest.fixture
def given(monkeypatch):
    def give(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return give


@pytest.mark.parametrize(
    ("variables", "job"),
    [
        (SLURM, Job("Slurm", ("SLURM_NTASKS=4", "SLURM_PROCID=0"))),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        ({"SLURM_NTASKS": "4"}, None),  # a shell of the job, not a task
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
            Job("Open MPI", ("OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_RANK=1")),
        ),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, Job("MPI", ("PMI_SIZE=2", "PMI_RANK=1"))),
        (
            {"AWS_BATCH_JOB_NUM_NODES": "2", "AWS_BATCH_JOB_NODE_INDEX": "0"},
            Job("AWS Batch", ("AWS_BATCH_JOB_NUM_NODES=2", "AWS_BATCH_JOB_NODE_INDEX=0")),
        ),
        ({"PMI_SIZE": "two", "PMI_RANK": "1"}, None),
        (
            KUBERNETES,
            Job("Kubernetes", tuple(f"{name}={text}" for name, text in KUBERNETES.items())),
        ),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),  # any pod
        ({}, None),
    ],
)
def test_jobs_are_recognized(given, variables, job):
    given(variables)
    assert find_job() == job


@pytest.mark.parametrize(("hosts", "slices", "total"), [("a,b", "1", 2), ("a,b", "2", 4)])
def test_hosts_of_a_tpu_slice_on_kubernetes_are_one_job(given, monkeypatch, hosts, slices, total):
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    given({"TPU_WORKER_HOSTNAMES": "a", "TPU_WORKER_ID": "0", "MEGASCALE_NUM_SLICES": "1"})
    assert find_job() is None  # a slice of one host
    given({"TPU_WORKER_HOSTNAMES": hosts, "MEGASCALE_NUM_SLICES": slices})
    assert find_job() == Job("Cloud TPU", (f"{total} hosts",))
    assert is_known_to_jax()


def test_jax_knows_where_the_tasks_of_a_slurm_step_meet(given):
    given(SLURM)
    assert not is_known_to_jax()
    given(STEP)
    assert is_known_to_jax()


def test_a_job_whose_processes_cannot_meet_is_refused(given, capsys, monkeypatch, tmp_path):
    given({"PMI_SIZE": "2", "PMI_RANK": "1"})
    assert main(["train", str(tmp_path / "no.yaml")]) == 2
    error = capsys.readouterr().err
    assert "MPI has started this process as one of several (PMI_SIZE=2, PMI_RANK=1)" in error
    assert "set JAX_COORDINATOR_ADDRESS=HOST:PORT" in error
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")  # each alone
    assert main(["train", str(tmp_path / "no.yaml")]) == 2
    assert "no.yaml: No such file" in capsys.readouterr().err
