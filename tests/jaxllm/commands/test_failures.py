"""Messages and exit statuses of failed commands."""

import errno
from pathlib import Path

import jax
import pytest

from jaxllm.cli import main
from jaxllm.commands.failures import EXIT_STATUSES, INTERNAL, report, report_failure
from jaxllm.errors import (
    CheckpointArgumentError,
    MissingCheckpointError,
    MissingFileError,
    MissingPackageError,
    NonFiniteError,
    UserError,
)
from jaxllm.interop import CheckpointError
from jaxllm.train import ConfigError


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("top_k=0"), 2),
        (ConfigError("one\ntwo"), 2),
        (MissingFileError("no such file"), 2),
        (MissingPackageError("pip install it"), 2),
        (MissingCheckpointError("a is not a folder"), 2),
        (CheckpointArgumentError("a exists"), 2),
        (CheckpointError(["a is missing", "b is unexpected"]), 1),
        (NonFiniteError("step 3"), 1),
    ],
)
def test_user_error_prints_only_its_message(error, status, capsys):
    assert report(error, debug=False) == status
    assert capsys.readouterr().err == "".join(f"jaxllm: {x}\n" for x in str(error).splitlines())


@pytest.mark.parametrize(
    "argv",
    [
        ["inspect", "a\nb/c\nd"],
        ["plot", "a\nb", "--output=c\nd/e"],
        ["runs", "a\nb/c\n"],
    ],
)
def test_a_line_break_in_a_path_is_shown_on_the_line_of_the_problem(argv, capsys, tmp_path):
    argv[1] = str(tmp_path / argv[1])
    assert main(argv) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/a\\nb" in line


def test_names_in_files_and_folders_begin_no_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "x\njaxllm: fine").write_text("")
    fields = r'steps: 1, batch_size: 8, seq_len: 8, mesh: {data: 8}, init_from: "a\njaxllm: fine"'
    Path("run.yaml").write_text(f"{{output: run, {fields}}}")
    for argv, status in ((["convert", "model", "to"], 1), (["train", "run.yaml"], 2)):
        assert main(argv) == status
        assert "\\njaxllm: fine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left"),
        (FileNotFoundError(errno.ENOENT, "No such file", "run.yaml"), "'run.yaml'"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("RESOURCE_EXHAUSTED: out of memory"), "out of memory"),
    ],
)
def test_operating_system_and_device_errors_are_not_bugs(error, said, capsys):
    assert report(error, debug=False) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_the_end_of_another_process_is_not_a_bug(capsys):
    from jaxllm.distributed import failing  # noqa: F401 - as in a job of several processes

    error = jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer")
    assert report(error, debug=False) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxllm: the connection to another process broke")


def test_what_other_processes_print_cannot_act_on_a_terminal(capsys):
    text, status = report_failure(UserError("the tensor a\x1b[2J\nb"), debug=False)
    assert (text, status) == ("the tensor a\\x1b[2J\nb", 2)
    assert capsys.readouterr().err == "jaxllm: the tensor a\\x1b[2J\njaxllm: b\n"


def test_a_stderr_that_cannot_be_written_keeps_the_status(monkeypatch):
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr("sys.stderr", full)
        assert report(UserError("a"), debug=False) == 2
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space left"):
            full.close()


@pytest.mark.parametrize(
    "cause", [RuntimeError("Unable to initialize backend 'cuda'"), AssertionError()]
)
def test_jax_without_devices_is_not_a_bug(cause, monkeypatch, capsys):
    def devices():
        raise cause

    monkeypatch.setattr(jax, "devices", devices)
    assert report(cause, debug=False) == 2
    found, advice = capsys.readouterr().err.splitlines()
    assert found.startswith("jaxllm: JAX finds no device for JAX_PLATFORMS='cpu'")
    assert str(cause) in found
    assert "set JAX_PLATFORMS=cpu, or install JAX for this machine's accelerator" in advice


@pytest.mark.parametrize("kind", [ValueError, KeyError, TypeError, AssertionError, OSError])
def test_other_errors_are_bugs(kind, capsys):
    assert report(kind("x"), debug=True) == INTERNAL
    assert f"jaxllm: internal error: {kind.__name__}: " in capsys.readouterr().err


def test_the_page_has_the_exit_statuses():
    rows = (Path(__file__).parents[3] / "docs" / "install.md").read_text().splitlines()
    for line in EXIT_STATUSES.splitlines()[1:]:
        status, meaning = line.split(maxsplit=1)
        assert f"| {status} | {meaning} |" in [row.replace("\\|", "|") for row in rows]
