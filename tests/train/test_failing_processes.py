"""Processes that do not belong together, and jobs of which one process fails: all end, soon."""

import dataclasses
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiers import examples
from tiny import random_of
from together import cluster, free_port, start

from jaxllm.checkpointing.orbax_layout import list_steps
from jaxllm.config import DecoderConfig, ExpertsConfig, LayerKind
from jaxllm.interop import save_pretrained
from jaxllm.train import TrainConfig
from jaxllm.train.config import save_config
from jaxllm.train.data.documents import DataConfig
from jaxllm.train.mesh import MeshConfig
from jaxllm.train.settings.logging import LoggingConfig

MODEL = DecoderConfig(
    vocab_size=256,
    embed_dim=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=32,
)
START = 240  # seconds until a process has failed, at most
SOON = 30  # seconds from the end of one process to the end of the others, at most

# A version that differs, as another installation on one of the hosts would have.
OTHER_VERSION = """
import sys
from importlib import metadata
version = metadata.version
metadata.version = lambda name: "0.0.1" if name == "optax" else version(name)
from jaxllm.cli import main
sys.exit(main(sys.argv[1:]))
"""
# Fails after step 2 of the training, in the middle of collective work.
FAILING = """
import sys
from jaxllm.cli import main
from jaxllm.train.data.batches import Batches
train = Batches.train

def failing(self, step=0):
    batches = train(self, step)
    for number in range(2):
        yield next(batches)
    raise OSError(5, "Input/output error", "shard_17.npz")

Batches.train = failing
sys.exit(main(sys.argv[1:]))
"""


def text(seed: int) -> str:
    return "".join(f"{i} and {seed} is {i + seed}. " for i in range(300))


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    (tmp_path / "text.txt").write_text(text(0))
    return TrainConfig(
        output=str(tmp_path / "run"),
        steps=6,
        batch_size=4,
        seq_len=16,
        model=MODEL,
        data=DataConfig(text=(str(tmp_path / "text.txt"),), held_out=0),
        mesh=MeshConfig(fsdp=2),
        logging=LoggingConfig(tensorboard=False),
    )


def saved(config: TrainConfig, file: Path) -> str:
    save_config(config, file)
    return str(file)


def end(processes: Sequence[subprocess.Popen[str]], first: int = 0) -> tuple[list[int], list[str]]:
    """Waits for the end of one process, then for that of the others, which must be soon.

    Returns the exit statuses and what the processes printed on stderr.
    """
    try:
        errors = {first: processes[first].communicate(timeout=START)[1]}
        for rank, process in enumerate(processes):
            if rank != first:
                errors[rank] = process.communicate(timeout=SOON)[1]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], [errors[i] for i in sorted(errors)]


def wait_for_steps(config: TrainConfig, processes: Sequence[subprocess.Popen[str]]) -> None:
    """Waits until a run has logged a step."""
    metrics = Path(config.output, "metrics.jsonl")
    while not metrics.is_file() or not metrics.read_text():
        assert all(process.poll() is None for process in processes)
        time.sleep(0.2)


@pytest.mark.cases(1, exhaustive=1)
@pytest.mark.parametrize("what", examples(["seed", "steps", "data", "version"], "seed"))
def test_processes_that_differ_end_before_the_first_step(config, tmp_path, what):
    other, program = config, ["-m", "jaxllm"]
    names = {"data": "data.", "version": "versions.optax"}
    if what == "version":
        program = ["-c", OTHER_VERSION]
    elif what == "data":  # the same path, such as on the host's own disk, with other text
        program = ["-c", OTHER_TEXT.format(text=str(tmp_path / "text.txt"))]
    else:
        other = dataclasses.replace(config, **{what: 7})
    commands = [
        ["-m", "jaxllm", "train", saved(config, tmp_path / "a.yaml")],
        [*program, "train", saved(other, tmp_path / "b.yaml")],
    ]
    shared = cluster(2)
    processes = [
        start(*command, devices=1, **shared, JAX_PROCESS_ID=str(rank))
        for rank, command in enumerate(commands)
    ]
    statuses, errors = end(processes)
    assert statuses == [2, 2], errors
    for error in errors:
        assert "the 2 processes of this run differ" in error
        assert names.get(what, f"config.{what}") in error
        assert "in process 0" in error
        assert "Traceback" not in error
    assert not list((tmp_path / "run").glob("checkpoints/*"))


# Reads another text than the other process, from the same path.
OTHER_TEXT = """
import sys
from pathlib import Path
read = Path.read_bytes
def other(self):
    return read(self).replace(b"and 0", b"and 1") if str(self) == {text!r} else read(self)
Path.read_bytes = other
from jaxllm.cli import main
sys.exit(main(sys.argv[1:]))
"""


IN_FOLDER = """
import os, sys
os.chdir({folder!r})
from jaxllm.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.exhaustive
def test_processes_that_start_from_other_weights_end_before_the_first_step(config, tmp_path):
    config = dataclasses.replace(config, model=None, init_from="start")  # on each host's own disk
    file = saved(config, tmp_path / "a.yaml")
    programs = []
    for host in range(2):
        save_pretrained(random_of(MODEL, host), tmp_path / str(host) / "start", format="hf")
        programs.append(["-c", IN_FOLDER.format(folder=str(tmp_path / str(host)))])
    shared = cluster(2)
    processes = [
        start(*program, "train", file, devices=1, **shared, JAX_PROCESS_ID=str(rank))
        for rank, program in enumerate(programs)
    ]
    statuses, errors = end(processes)
    assert statuses == [2, 2], errors
    for error in errors:
        assert "the 2 processes of this run differ" in error
        assert "init_from.model.safetensors: '" in error
        assert "config" not in error.replace("same config", "")


@pytest.mark.cases(0, exhaustive=1)
@pytest.mark.exhaustive
@pytest.mark.parametrize("failing", [0, 1])
def test_one_failing_process_ends_all_with_its_message(config, tmp_path, failing):
    command = ["train", saved(config, tmp_path / "a.yaml")]
    programs = [["-m", "jaxllm"], ["-m", "jaxllm"]]
    programs[failing] = ["-c", FAILING]
    shared = cluster(2)
    processes = [
        start(*program, *command, devices=1, **shared, JAX_PROCESS_ID=str(rank))
        for rank, program in enumerate(programs)
    ]
    statuses, errors = end(processes, first=failing)
    assert statuses == [2, 2], errors
    assert "jaxllm: [Errno 5] Input/output error: 'shard_17.npz'" in errors[failing]
    assert f"process {failing} failed: [Errno 5] Input/output" in errors[1 - failing]
    assert not any("Traceback" in error for error in errors)


@pytest.mark.cases(0, exhaustive=1)
@pytest.mark.exhaustive
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_all_with_one_line(config, tmp_path, killed):
    config = dataclasses.replace(config, steps=10**6)
    command = ["-m", "jaxllm", "train", saved(config, tmp_path / "a.yaml")]
    shared = cluster(2)
    processes = [start(*command, devices=1, **shared, JAX_PROCESS_ID=rank) for rank in ("0", "1")]
    wait_for_steps(config, processes)
    processes[killed].kill()
    statuses, errors = end(processes, first=killed)
    assert statuses[killed] == -signal.SIGKILL
    assert statuses[1 - killed] == 2, errors
    lines = [line for line in errors[1 - killed].splitlines() if line.startswith("jaxllm: ")]
    assert len(lines) == 1, errors
    lost = f"jaxllm: process {killed} was lost: ", "jaxllm: the connection to another process broke"
    assert lines[0].startswith(lost)
    assert "Traceback" not in errors[1 - killed]
    assert "stack trace" not in errors[1 - killed]


@pytest.mark.cases(0, exhaustive=1)
@pytest.mark.exhaustive
@pytest.mark.parametrize("signalled", [0, 1])
@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=2), MeshConfig(fsdp=2, expert=4)])
def test_sigterm_to_any_process_saves_the_run_in_all(config, tmp_path, mesh, signalled):
    experts = ExpertsConfig(num_experts=4, top_k=2, mlp_dim=16)
    model = dataclasses.replace(MODEL, pattern=(LayerKind(mlp="experts"),), experts=experts)
    config = dataclasses.replace(config, steps=10**6, model=model, mesh=mesh, batch_size=8)
    command = ["-m", "jaxllm", "train", saved(config, tmp_path / "a.yaml")]
    shared, devices = cluster(2), mesh.fsdp * mesh.expert // 2
    processes = [
        start(*command, devices=devices, **shared, JAX_PROCESS_ID=rank) for rank in ("0", "1")
    ]
    try:
        wait_for_steps(config, processes)
        processes[signalled].terminate()
        outputs = [process.communicate(timeout=START) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    stopped = re.search(r"stopped by SIGTERM after step (\d+) of", outputs[0][0])
    assert stopped is not None, outputs
    assert f"continue with jaxllm train {config.output}/config.yaml --resume" in outputs[0][0]
    [saved_step] = list_steps(Path(config.output))
    assert saved_step == int(stopped[1])


@pytest.mark.exhaustive
def test_tasks_of_slurm_join_each_other(config, tmp_path):
    command = ["-m", "jaxllm", "train", saved(config, tmp_path / "a.yaml")]
    job = {
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
    }
    processes = [
        start(*command, devices=1, **job, SLURM_PROCID=rank, SLURM_LOCALID=rank)
        for rank in ("0", "1")
    ]
    statuses, errors = end(processes)
    assert statuses == [0, 0], errors
    assert all("fsdp=2" in error for error in errors)


@pytest.mark.exhaustive
def test_a_second_run_in_a_folder_is_refused(config, tmp_path):
    config = dataclasses.replace(config, steps=10**6, mesh=MeshConfig())
    command = ["-m", "jaxllm", "train", saved(config, tmp_path / "a.yaml")]
    first = start(*command, devices=1)
    try:
        while "parameters" not in first.stderr.readline():
            assert first.poll() is None
        [status], [error] = end([start(*command, devices=1)])
    finally:
        first.terminate()  # and it says how to continue
    out, _ = first.communicate(timeout=240)
    assert f"in use by another run (process {first.pid} on " in error
    assert status == 2
    assert first.returncode == 0
    assert f"continue with jaxllm train {config.output}/config.yaml --resume" in out
