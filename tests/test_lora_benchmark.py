"""The benchmark of LoRA: a tiny model goes through it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "lora.py"


@pytest.mark.torch
@pytest.mark.exhaustive
def test_a_tiny_model_is_measured(tmp_path):
    file = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--toy", "--rounds", "2", "--json", str(file)]
    given = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=given)
    assert done.returncode == 0, done.stderr
    step, memory = json.loads(file.read_text())
    assert step["ours"] > 0
    assert step["theirs"] > 0
    assert memory["unit"] == "MiB"
    assert 0 < memory["ours"] < memory["theirs"]
