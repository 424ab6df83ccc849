"""Tests of `jaxllm quickstart`."""

import subprocess
import sys

import pytest

from jaxllm.cli import main


@pytest.mark.torch
def test_quickstart_refuses_a_folder_with_other_files(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(["quickstart", "--output", str(tmp_path)]) == 2
    assert "holds thesis.txt, which quickstart did not write" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.exhaustive
def test_loop_with_few_steps_reports_every_check(tmp_path):
    command = [sys.executable, "-m", "jaxllm", "quickstart", "--steps", "4", "--output", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if line.startswith(("ok  ", "FAIL"))]
    assert [line.split(":")[0] for line in said] == [
        "ok   import parity",
        "FAIL held-out loss",
        "ok   from_pretrained",
        "ok   export parity",
        "ok   greedy tokens",
    ], done.stderr
    assert done.returncode == 1
    made = {path.name for path in (tmp_path / "out").iterdir()}
    expected = {"llama", "llama_trained", "run", "parity_import.html", "parity_export.html"}
    assert made == expected
    assert all(f"out/{name}" in done.stdout for name in expected)
