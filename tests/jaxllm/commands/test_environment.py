"""Commands validate environment variables and give virtual devices enough threads."""

import os

import pytest

from jaxllm.cli import main
from jaxllm.commands.environment import set_environment


@pytest.mark.parametrize(("name", "text"), [("JAX_NUM_PROCESSES", "two"), ("JAX_PROCESS_ID", "-1")])
def test_process_variables_must_be_whole_numbers(monkeypatch, capsys, name, text):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv(name, text)
    assert main(["parity", "check", "pack", "llama"]) == 2
    assert f"{name}='{text}'" in capsys.readouterr().err


def test_number_of_virtual_devices_must_be_a_whole_number(monkeypatch, capsys):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "eight")
    assert main(["inspect", "model"]) == 2
    assert "JAX_NUM_CPU_DEVICES='eight' is not a whole number" in capsys.readouterr().err


def test_virtual_devices_get_enough_threads(monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "4")
    monkeypatch.setenv("NPROC", "")
    monkeypatch.delenv("NPROC")
    set_environment()
    assert os.environ["NPROC"] == "32"
