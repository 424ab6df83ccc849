"""Tests of `jaxllm train`."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxllm.cli import main

ROOT = Path(__file__).parents[3]


def test_misspelled_config_key_gets_a_suggestion(tmp_path, capsys):
    text = (ROOT / "configs" / "tiny.yaml").read_text()
    bad = tmp_path / "bad.yaml"
    bad.write_text(text.replace("learning_rate", "learning_rat").replace("seq_len", "seqlen"))
    assert main(["train", str(bad)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert (
        f"jaxllm: {bad}: unknown field 'optimizer.learning_rat'; did you mean 'learning_rate'?"
        in lines
    )
    assert f"jaxllm: {bad}: unknown field 'seqlen'; did you mean 'seq_len'?" in lines


@pytest.mark.parametrize("command", [["train"], ["plan"], ["parity", "mesh"]])
def test_config_after_an_override_and_a_wrong_override_are_explained(command, capsys):
    config = str(ROOT / "configs" / "tiny.yaml")
    assert main([*command, "--mesh.fsdp", "4", config]) == 2
    assert "4: No such file or directory; CONFIG comes before" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main([*command, config, "--mesh.fsdq", "4"])
    assert end.value.code == 2
    shown = "".join(capsys.readouterr().err.replace("│", "").split())
    assert "".join(f"run jaxllm {' '.join(command)} {config} --help".split()) in shown


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("9", "speed.profile='9' is not FIRST:LAST, such as 10:15"),
        ("10:1000000", "speed.profile='10:1000000' has steps after the last one: steps="),
    ],
)
def test_steps_to_profile_are_checked_before_the_run(tmp_path, capsys, steps, message):
    config = str(ROOT / "configs" / "tiny.yaml")
    assert main(["train", config, "--output", str(tmp_path / "run"), "--profile", steps]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_train_override_resume_and_export(tmp_path, byte_model, capsys):
    """Trains from a checkpoint, resumes, exports and generates through the command line."""
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    (tmp_path / "run.yaml").write_text(
        f"output: {tmp_path}/run\nsteps: 4\nbatch_size: 8\nseq_len: 32\ninit_from: {byte_model}\n"
        f"data:\n  text: [{tmp_path}/text.txt]\n  held_out: 0.2\nmesh: {{fsdp: 4, tensor: 2}}\n"
    )
    config = str(tmp_path / "run.yaml")
    assert main(["train", config, "--save-every", "2", "--profile", "2:3"]) == 0
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    out = capsys.readouterr()
    assert "held-out loss" in out.out
    assert main(["train", config]) == 2
    assert "already holds a run of 4 steps; use --resume to continue it" in capsys.readouterr().err
    assert main(["train", config, "--resume", "--optimizer.learning-rate", "1.0"]) == 2
    assert "optimizer.learning_rate: 0.0003 in the checkpoint, 1.0 now" in capsys.readouterr().err
    assert main(["train", config, "--resume", "--profile", "2:3"]) == 0
    assert "profile 2:3  without the steps up to 4" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "hf")]) == 0
    assert (
        main(["generate", str(tmp_path / "run"), "--prompt", "the ", "--max-new-tokens", "4"]) == 0
    )
    assert capsys.readouterr().out.splitlines()[-1].startswith("the ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping of fields, as in configs/tiny.yaml, found None"),
        ("- 1", "found [1]"),
        ("steps: 2\nsteps: 3", "'steps' occurs more than once"),
        ("optimizer: {b1: 0.9, b1: 0.8}", "'b1' occurs more than once"),
        ("a: [", "while parsing"),
    ],
)
def test_invalid_yaml_is_rejected(text, message, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(text)
    assert main(["train", str(tmp_path / "run.yaml")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_a_step_that_a_run_does_not_have_leaves_nothing_behind(tmp_path, capsys):
    arguments = [str(ROOT / "configs" / "tiny.yaml"), "--output", str(tmp_path / "run")]
    assert main(["train", *arguments, "--resume-from", "7", "--mesh.data", "8"]) == 2
    assert "has no checkpoint of step 7; it has none" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


HELP = """
import sys
from jaxllm.cli import main
try:
    main(["train", sys.argv[1], "--help"])
finally:
    late = ("grain", "orbax.checkpoint", "torch", "transformers", "jaxllm.interop", "matplotlib")
    print("imported:", *[name for name in late if name in sys.modules])
"""


def test_the_help_of_a_config_is_in_groups_and_imports_little():
    """Each of these packages takes tenths of a second to import."""
    command = [sys.executable, "-c", HELP, str(ROOT / "configs" / "tiny.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported:"
    for group in ("model", "data", "optimizer", "logging", "export", "mesh", "loss", "speed"):
        assert f"─ {group} options" in done.stdout
