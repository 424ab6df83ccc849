"""Commands validate environment variables and give virtual devices enough threads."""

import io
import os
import subprocess
import sys

import pytest

from jaxllm.cli import main
from jaxllm.commands.environment import open_streams, progress_bar, set_environment


@pytest.mark.parametrize(
    ("name", "text"),
    [("JAX_NUM_PROCESSES", "two"), ("JAX_NUM_PROCESSES", "²"), ("JAX_PROCESS_ID", "-1")],
)
def test_process_variables_must_be_whole_numbers(monkeypatch, capsys, name, text):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv(name, text)
    assert main(["parity", "check", "pack", "llama"]) == 2
    assert f"{name}='{text}'" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["eight", "0", "²", "9" * 5000])
def test_number_of_virtual_devices_must_be_a_whole_number(text, monkeypatch, capsys):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", text)
    assert main(["inspect", "model"]) == 2
    expected = f"JAX_NUM_CPU_DEVICES={text!r} is not a whole number of at least 1"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "status"), [("--version >&-", 0), ("inspect x >&- 2>&-", 2), ("inspect x 2>&-", 2)]
)
def test_closed_streams_discard_text(command, status):
    shell = ["sh", "-c", f'"$0" -m jaxllm {command}', sys.executable]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "x"} if status else None
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_stdout_without_unicode_escapes_what_it_lacks(monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    open_streams()
    print("a → b", flush=True)
    assert stdout.buffer.getvalue() == b"a \\u2192 b\n"


def test_virtual_devices_get_enough_threads(monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "4")
    monkeypatch.setenv("NPROC", "")
    monkeypatch.delenv("NPROC")
    set_environment()
    assert os.environ["NPROC"] == "32"


def test_a_progress_bar_is_shown_on_a_terminal_only(monkeypatch, capsys):
    with progress_bar() as show:
        assert show is None
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    with progress_bar() as show:
        show("loading", None)
        for run in ("reference", "model"):
            show(run, 2)
    captured = capsys.readouterr()
    assert "model" in captured.err
    assert captured.out == ""
