"""`jaxllm quickstart`."""

import subprocess
import sys

from jaxllm.cli import main


def test_quickstart_touches_no_folder_of_yours(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(["quickstart", "--output", str(tmp_path)]) == 2
    assert "holds thesis.txt, which no quickstart made" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_in_few_steps_the_loop_proves_itself_and_says_what_does_not_hold(tmp_path):
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
