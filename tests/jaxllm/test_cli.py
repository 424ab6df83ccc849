"""The command line as a whole: usage, exit statuses, and what it imports."""

import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from tiny import TINY

from jaxllm import interop
from jaxllm.cli import main
from jaxllm.commands import failures


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "jaxllm", *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("options", [["--help"], ["--version"], ["parity", "record", "--help"]])
def test_help_and_version_import_no_heavy_packages(options):
    script = (
        "import sys\n"
        "from jaxllm.cli import main\n"
        f"try: main({options})\n"
        "except SystemExit: pass\n"
        "heavy = {'jax', 'torch', 'transformers', 'orbax', 'flax', 'numpy', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("[]\n")


def test_help_lists_commands_and_exit_statuses(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    for command in ("quickstart", "train", "generate", "convert", "parity"):
        assert f"\n    {command}" in out
    for status in (0, 1, failures.WRONG_USE, failures.INTERNAL, 130, 141):
        assert f"\n  {status} " in out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["generate", "MODEL", "--prompt", "x", "--top-k", "4"], 2, "need a temperature above 0"),
        (
            ["generate", "MODEL", "--prompt", "x", "--repetition-penalty", "0"],
            2,
            "repetition_penalty=0.0 must be finite and above 0",
        ),
        (["generate", "MODEL", "--prompt", ""], 2, "prompt 0 is empty"),
        (["convert", "MODEL", "OUT", "--model-parallel", "2"], 2, "is for format 'meta', not 'hf'"),
        (
            ["convert", "MODEL", "OUT", "--to", "meta", "--model-parallel", "3"],
            1,
            "3 model-parallel shards",
        ),
    ],
)
def test_user_error_is_one_line_and_an_exit_status(
    arguments, status, message, byte_model, tmp_path, capsys
):
    places = {"MODEL": str(byte_model), "OUT": str(tmp_path / "out")}
    assert main([places.get(argument, argument) for argument in arguments]) == status
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "nowhere"],
        ["verify", "nowhere"],
        ["suggest", "nowhere"],
        ["suggest", "nowhere", "--config", "CONFIG"],
        ["convert", "nowhere", "out"],
        ["convert", "nowhere", "out", "--rules", "RULES"],
        ["generate", "nowhere", "--prompt", "x"],
        ["parity", "nowhere"],
        ["parity", "record", "nowhere", "--output", "out"],
        ["parity", "check", "nowhere", "MODEL"],
        ["parity", "mesh", "nowhere"],
        ["train", "nowhere"],
        ["plan", "nowhere"],
        ["diff", "nowhere", "MODEL"],
    ],
    ids=" ".join,
)
def test_missing_path_is_wrong_use(command, byte_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RULES").write_text("config_file, config, rules = None, lambda fields: None, []")
    (tmp_path / "CONFIG").write_text(yaml.safe_dump(dataclasses.asdict(TINY)))
    places = {"MODEL": str(byte_model)}
    assert main([places.get(argument, argument) for argument in command]) == failures.WRONG_USE
    err = capsys.readouterr().err
    assert "nowhere" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [[], ["sing"], ["generate"], ["generate", "x", "--max-new-tokens", "0"]]
)
def test_bad_usage_exits_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: jaxllm" in capsys.readouterr().err


def test_python_m_jaxllm_runs_the_command(tmp_path):
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: jaxllm")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """Plants a bug in `jaxllm inspect`; its traceback files go to `tmp_path`."""

    def inspect(path: str, **options: object) -> None:
        raise ValueError("axes do not match")

    monkeypatch.setattr(interop, "inspect", inspect)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_bug_is_reported_as_internal_error(broken, tmp_path, capsys):
    assert main(["inspect", "folder"]) == failures.INTERNAL
    err = capsys.readouterr().err
    assert err.startswith("jaxllm: internal error: ValueError: axes do not match\n")
    assert "this is a bug; rerun with --debug" in err
    assert "Traceback" not in err
    [kept] = tmp_path.glob("jaxllm-*.traceback")
    assert str(kept) in err
    assert kept.read_text().splitlines()[-1] == "ValueError: axes do not match"


@pytest.mark.parametrize("command", [["--debug", "inspect", "x"], ["inspect", "x", "--debug"]])
def test_debug_shows_the_traceback_of_a_bug(broken, command, tmp_path, capsys):
    assert main(command) == failures.INTERNAL
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "in inspect" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["--debug", "inspect", "x"], ["inspect", "x", "--debug"]])
def test_debug_shows_where_a_user_error_was_raised(command, capsys):
    assert main(command) == failures.WRONG_USE
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1] == "jaxllm: x is not a folder"


# Ctrl-C while the command reads its config. A shell starts background jobs, such as a run of these
# tests, with the signal ignored.
INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from jaxllm.commands import runs
runs.read_run_config = lambda *given: signal.raise_signal(signal.SIGINT)
from jaxllm.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_is_one_line_and_an_exit_status():
    command = [sys.executable, "-c", INTERRUPTED, "plan", "run.yaml"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr == "jaxllm: interrupted\n"
    assert done.returncode == 130


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "options", [["--version"], ["inspect", "MODEL"], ["inspect", "MODEL", "--json"]]
)
def test_closed_pipe_prints_no_error(options, byte_model):
    read, write = os.pipe()
    os.close(read)
    options = [str(byte_model) if option == "MODEL" else option for option in options]
    command = [sys.executable, "-m", "jaxllm", *options]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == failures.CLOSED_PIPE
