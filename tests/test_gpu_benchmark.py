"""The benchmark for accelerators: a tiny model goes through it on CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.torch
@pytest.mark.exhaustive
def test_a_tiny_model_is_measured(tmp_path):
    options = ("--toy", "--eager", "--rounds", "2", "--json", str(tmp_path / "figures.json"))
    done = run(*options)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found == json.loads(done.stdout)
    assert found["device"] == "cpu"
    assert found["jaxllm"]["tokens_per_second"] == pytest.approx(
        2 * 64 / found["jaxllm"]["seconds"]
    )
    assert found["torch"]["mfu"] is None


@pytest.mark.torch
@pytest.mark.exhaustive
def test_without_an_accelerator_the_tiny_model_is_suggested():
    done = run()
    assert done.returncode == 2
    assert "--toy runs a tiny model on CPU" in done.stderr
