"""`jaxllm doctor`: one process, two on this machine, and jobs with the classic mistakes."""

import json

import pytest
from memory_store import memory_store
from together import cluster, free_port, slurm_job, start

from jaxllm.cli import main

CONFIG = """
output: run
steps: 2
batch_size: 16
seq_len: 8
data: {text: [mine.txt]}
model: {vocab_size: 256, embed_dim: 8, num_layers: 1, num_heads: 1, num_kv_heads: 1, head_dim: 8,
        mlp_dim: 8}
"""
# Another host: with its own disk and another version.
OTHER_HOST = """
import os, sys
from importlib import metadata
os.chdir({folder!r})
version = metadata.version
metadata.version = lambda name: "0.0.1" if name == "optax" else version(name)
from jaxllm.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "run.yaml").write_text(CONFIG)
    (tmp_path / "mine.txt").write_text("to be or not to be")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_process_is_examined_and_leaves_nothing(folder, capsys):
    assert main(["doctor", "run.yaml", "--mesh.fsdp", "8", "--size", "1"]) == 0
    out = capsys.readouterr().out
    assert "8 x cpu" in out
    assert "0-15" in out
    assert "none: one process" in out
    assert "1 MiB over 8 devices" in out
    assert {path.name for path in folder.iterdir()} == {"run.yaml", "mine.txt"}


def test_a_mesh_that_does_not_fit_is_one_line(folder, capsys):
    assert main(["doctor", "run.yaml", "--mesh.fsdp", "3", "--size", "1"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("jaxllm: the mesh data=1 x fsdp=3")
    assert error.count("\n") == 1


def test_without_a_config_only_the_hosts_are_examined(capsys):
    assert main(["doctor", "--size", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == []
    assert found["all_reduce"]["num_devices"] == 8
    assert main(["doctor", "--mesh.fsdp=3"]) == 2
    assert "sets a field of CONFIG, but none is given" in capsys.readouterr().err


def test_several_processes_need_a_place_to_meet(capsys, monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")  # which the option replaces
    assert main(["doctor", "--num-processes", "2", "--process-id", "0"]) == 2
    error = capsys.readouterr().err
    assert "NUM_PROCESSES=2 and JAX_PROCESS_ID=0, but nothing says where the processes" in error
    monkeypatch.delenv("JAX_NUM_PROCESSES")
    assert main(["doctor", "--process-id", "3"]) == 2
    assert "JAX_PROCESS_ID=3, but nothing says where the processes" in capsys.readouterr().err


def test_a_process_that_waits_in_vain_ends_with_one_line():
    command = ["-m", "jaxllm", "doctor", "--timeout", "2"]
    alone = start(*command, devices=1, **cluster(2), JAX_PROCESS_ID="1")
    error = alone.communicate(timeout=120)[1]
    assert alone.returncode == 2
    assert "process 1 of 2 has waited 2 s at 127.0.0.1:" in error
    assert "Traceback" not in error


def test_two_processes_of_slurm_are_sound(folder):
    """With the variables of Slurm, by which jax finds the others."""
    job = slurm_job(2)
    command = ["-m", "jaxllm", "doctor", "run.yaml", "--mesh.fsdp", "4", "--size", "1"]
    tasks = [
        start(*command, devices=2, **job, SLURM_PROCID=rank, SLURM_LOCALID=rank)
        for rank in ("0", "1")
    ]
    outputs = [task.communicate(timeout=240) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    shown, other = (out for out, _ in outputs)
    assert "0-7" in shown
    assert "8-15" in shown
    assert "seen by 2 of 2" in shown
    assert "1 MiB over 4 devices" in shown
    assert "processes" not in other


def break_config(folder):
    (folder / "run.yaml").write_text("output: [")


def break_output(folder):
    (folder / "run").write_text("a file where the run's folder should be")


def break_data(folder):
    (folder / "mine.txt").unlink()


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        (None, []),
        (break_config, ["run.yaml"]),
        (break_output, ["run cannot be written: "]),
        (break_data, ["no file matches 'mine.txt'", "no file matches 'gs://bucket/no*.txt'"]),
    ],
)
def test_each_exchange_is_done_once_whatever_has_failed(
    folder, capsys, monkeypatch, change, problems
):
    """Otherwise the other processes would wait for it, and the coordinator refuse a second one."""
    name = "no*.txt" if change is break_data else "mine.txt"
    exchanged: list[tuple[str, int]] = []

    def exchange(name: str, text: str, timeout_s: int) -> list[str]:
        exchanged.append((name, timeout_s))
        return [text]

    monkeypatch.setattr("jaxllm.distributed.coordinator.exchange_texts", exchange)
    if change is not None:
        change(folder)
    with memory_store() as store:
        store.pipe("gs://bucket/mine.txt", b"to be")
        data = ["--data.text", "mine.txt", f"gs://bucket/{name}"]
        arguments = [*data, "--mesh.fsdp", "3", "--timeout", "7", "--size", "1"]
        assert main(["doctor", "run.yaml", *arguments]) == 1
    error = capsys.readouterr().err
    assert [problem for problem in problems if problem not in error] == [], error
    assert ("the mesh data=1 x fsdp=3" in error) == (change is not break_config)
    assert exchanged == [(f"doctor/{name}", 7) for name in ("nonce", "folder", "clock", "facts")]


def test_data_in_a_bucket_are_listed(folder, capsys):
    with memory_store() as store:
        store.pipe("gs://bucket/mine.txt", b"to be")
        arguments = ["--data.text", "gs://bucket/*.txt", "--mesh.fsdp", "8", "--size", "1"]
        assert main(["doctor", "run.yaml", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["processes"][0]["files"] == {"gs://bucket/mine.txt": 5}


@pytest.mark.exhaustive
def test_the_classic_mistakes_are_all_named(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "run.yaml").write_text(CONFIG)
    arguments = ["doctor", "run.yaml", "--mesh.fsdp", "3", "--size", "1"]
    shared = cluster(2)
    sound = start("-m", "jaxllm", *arguments, devices=2, **shared, JAX_PROCESS_ID="0")
    program = OTHER_HOST.format(folder=str(other))
    wrong = start("-c", program, *arguments, devices=1, **shared, JAX_PROCESS_ID="1")
    outputs = [process.communicate(timeout=240) for process in (sound, wrong)]
    assert [sound.returncode, wrong.returncode] == [1, 1], outputs
    error = outputs[0][1]
    for problem in (
        "optax differs: 0.2.8 in process 0",
        "the number of devices differs: 2 in process 0",
        "the run's folder is not the one of process 0",
        "the data differ: mine.txt: 18 bytes in process 0",
    ):
        assert problem in error
    assert "Traceback" not in error


@pytest.mark.exhaustive
def test_what_fails_in_one_process_is_a_problem_of_that_one(folder):
    break_output(folder)
    (folder / "malformed.yaml").write_text("output: [")
    shared = cluster(2)
    started = [
        start(
            *("-m", "jaxllm", "doctor", config, "--mesh.fsdp", "3", "--size", "1"),
            devices=1,
            JAX_PROCESS_ID=str(rank),
            **shared,
        )
        for rank, config in enumerate(("run.yaml", "malformed.yaml"))
    ]
    outputs = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [1, 1], outputs
    error = outputs[0][1]
    lines = [line.partition("): ") for line in error.splitlines()]
    assert [of.startswith("jaxllm: process 0 (") for of, _, _ in lines] == [True, True, False]
    assert "run cannot be written: " in lines[0][2]
    assert lines[1][2].startswith("the mesh data=1 x fsdp=3")
    assert lines[2][2].startswith("malformed.yaml")
    assert lines[2][0].startswith("jaxllm: process 1 (")


@pytest.mark.exhaustive
def test_two_processes_are_examined_by_flags(folder):
    """`--coordinator` and the others count before the environment."""
    command = ["-m", "jaxllm", "doctor", "run.yaml", "--mesh.fsdp", "2", "--size", "1"]
    place = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2"]
    commands = [[*command, *place, "--process-id", str(rank)] for rank in range(2)]
    processes = [start(*each, devices=1) for each in commands]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
