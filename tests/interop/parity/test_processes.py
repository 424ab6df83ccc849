"""Multi-host `parity check`: two processes, neither of which holds the whole model."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import hf_cases
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from together import cluster, run_together, start

from jaxllm.interop.parity.execution.recipe import Recipe
from jaxllm.interop.parity.golden import check_pack, record_checkpoint
from jaxllm.train import make_mesh

# Runs commands one after the other and prints their exit statuses.
SCRIPT = """
import json, sys
from jaxllm.cli import main
print("STATUS" + json.dumps([main(command) for command in json.loads(sys.argv[1])]))
"""
pytestmark = pytest.mark.exhaustive

LENGTH = 300  # tokens, so that errors at late positions show
FORWARD = ("weights", "logits", "layers")
DAMAGED = "model.layers.0.self_attn.k_proj.weight"


class Case(NamedTuple):
    """One `parity check` that both processes run."""

    pack: str
    checkpoint: str
    mesh: dict[str, int]
    levels: tuple[str, ...] | None = None  # None: all levels of the pack


CASES = {
    "fsdp": Case("llama-pack", "llama", {"fsdp": 2}),
    "tensor": Case("llama-whole", "llama", {"tensor": 2}, FORWARD),
    "damaged": Case("llama-whole", "damaged", {"fsdp": 2}, FORWARD),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder of checkpoints, one with a changed weight, and packs of the unchanged ones."""
    folder = tmp_path_factory.mktemp("processes")
    llama = hf_cases.Case("Llama", {"num_hidden_layers": 1})
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    mixtral = hf_cases.Case("Mixtral", {**experts, "num_hidden_layers": 1})
    for name, case in {"llama": llama, "mixtral": mixtral}.items():
        case.build().save_pretrained(folder / name)
    options = {"num_tokens": LENGTH, "recipe": Recipe(steps=2)}
    record_checkpoint(folder / "llama", folder / "llama-pack", positions=8, **options)
    options["levels"] = FORWARD
    record_checkpoint(folder / "llama", folder / "llama-whole", positions=None, **options)
    record_checkpoint(folder / "mixtral", folder / "mixtral-pack", positions=8, **options)
    damaged = shutil.copytree(folder / "llama", folder / "damaged") / "model.safetensors"
    tensors = load_file(damaged)
    tensors[DAMAGED] = tensors[DAMAGED] * np.float32(1.01)
    save_file(tensors, damaged, {"format": "pt"})
    return folder


def command(folder: Path, case: Case, output: Path) -> list[str]:
    """The command line of a case."""
    axes = [f"{axis}={size}" for axis, size in case.mesh.items()]
    levels = [] if case.levels is None else ["--levels", *case.levels]
    places = [str(folder / case.pack), str(folder / case.checkpoint)]
    return ["parity", "check", *places, "--mesh", *axes, *levels, "--output", str(output)]


class Process(NamedTuple):
    """The exit statuses of a process's commands, its stdout and its stderr."""

    statuses: list[int]
    said: str
    complained: str


def run_both(*commands: list[list[str]], **environment: str) -> list[Process]:
    """Runs each process's commands; each process has one device."""
    scripts = [["-c", SCRIPT, json.dumps(own)] for own in commands]
    said = run_together(*scripts, devices=1, **environment)
    return [Process(json.loads(out.rpartition("STATUS")[2]), out, err) for out, err in said]


@pytest.fixture(scope="module")
def together(folder) -> list[Process]:
    """Runs every case."""
    return run_both(
        *(
            [command(folder, case, folder / f"{name}.{rank}") for name, case in CASES.items()]
            for rank in range(2)
        )
    )


def is_same(folder: Path, case: Case, output: Path) -> bool:
    """Checks a case in one process too: the reports must be equal. Returns the verdict."""
    paths = folder / case.pack, folder / case.checkpoint
    mesh = make_mesh(devices=jax.devices(), **case.mesh)
    alone = check_pack(*paths, mesh=mesh, levels=case.levels)
    found = json.loads((output / "parity.json").read_text())
    assert found == {**json.loads(json.dumps(alone.to_json())), "date": found["date"]}
    return alone.ok


@pytest.mark.cases(0, exhaustive=1)
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CASES)
def test_two_processes_report_the_same_numbers_as_one(folder, together, name):
    holds = is_same(folder, CASES[name], folder / f"{name}.0")
    assert holds == (name != "damaged")
    at = list(CASES).index(name)
    assert [process.statuses[at] for process in together] == [0 if holds else 1] * 2


def test_a_mixture_of_experts_passes_in_two_processes(folder):
    case = Case("mixtral-pack", "mixtral", {"expert": 2}, FORWARD)
    commands = [[command(folder, case, folder / f"experts.{rank}")] for rank in range(2)]
    found = run_both(*commands, JAX_ENABLE_COMPILATION_CACHE="false")
    assert [process.statuses for process in found] == [[0], [0]]
    report = json.loads((folder / "experts.0" / "parity.json").read_text())
    assert report["verdicts"] == dict.fromkeys(FORWARD, True)


@pytest.mark.usefixtures("together")
def test_every_recorded_level_is_judged(folder):
    found = json.loads((folder / "fsdp.0" / "parity.json").read_text())
    assert list(found["verdicts"]) == [
        *("weights", "config", "logits", "layers", "gradients", "step", "curve", "generate")
    ]


@pytest.mark.usefixtures("together")
def test_a_changed_weight_is_named(folder):
    found = json.loads((folder / "damaged.0" / "parity.json").read_text())
    assert [row["path"] for row in found["weights"] if not row["ok"]] == ["layers.0.attn.k_proj"]
    assert found["first_divergence"]["path"] == "layers.0.attn.k_proj"


def test_only_the_first_process_writes_and_prints(folder, together):
    first, second = together
    assert first.said.count("parity.json, parity.html") == len(CASES)
    assert "parity.json" not in second.said
    written = {file.parent.name for file in folder.glob("*/parity.*")}
    assert written - {"experts.0"} == {f"{name}.0" for name in CASES}


def test_several_processes_without_a_mesh_are_rejected(folder):
    whole = command(folder, CASES["fsdp"], folder / "refused")
    for status, complained in fail_together(*[whole[: whole.index("--mesh")]] * 2):
        assert status == 2
        assert "there are 2 processes and no mesh" in complained


def test_an_input_missing_in_one_process_stops_both(folder):
    case = CASES["fsdp"]
    commands = [
        command(folder, case._replace(pack=pack), folder / "refused")
        for pack in (case.pack, "nowhere")
    ]
    (status, first), (own_status, second) = fail_together(*commands)
    assert {status, own_status} <= {1, 2}  # told by the check itself, or by the coordinator
    assert "process 1 failed" in first
    assert "nowhere is not a folder" in second


def fail_together(*commands: list[str]) -> list[tuple[int, str]]:
    """Runs one command in each process. Returns their exit statuses and stderr."""
    script = "import sys; from jaxllm.cli import main; sys.exit(main(sys.argv[1:]))"
    shared = cluster(len(commands))
    started = [
        start("-c", script, *own, devices=1, **shared, JAX_PROCESS_ID=str(rank))
        for rank, own in enumerate(commands)
    ]
    said = [process.communicate(timeout=240)[1] for process in started]
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]
