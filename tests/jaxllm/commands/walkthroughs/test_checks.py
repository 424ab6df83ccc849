"""Checks of walkthroughs: the verdict over all of them, and folders that hold other files."""

import pytest

from jaxllm.commands.walkthroughs.checks import Check, clear, load_check, run_checks
from jaxllm.errors import UserError

GOOD, BAD = Check("good", "1", "1", True), Check("bad", "2", "1", False)


def test_every_check_is_made_and_all_must_pass(tmp_path, capsys):
    (tmp_path / "made.txt").write_text("x" * 2000)
    assert run_checks(tmp_path, iter([GOOD, GOOD]))
    assert not run_checks(tmp_path, iter([BAD, GOOD]))
    out = capsys.readouterr().out
    assert out.count("good") == 3
    assert "FAIL" in out
    assert "made.txt  2 kB" in out.replace("\n", "")  # long paths are wrapped


def test_only_what_the_command_made_is_removed(tmp_path):
    folder = tmp_path / "out"
    clear(folder, ("run",), "demo")
    (folder / "run").mkdir()
    (folder / "run" / "file").touch()
    clear(folder, ("run",), "demo")
    assert not list(folder.iterdir())
    (folder / "thesis.txt").touch()
    (folder / "run").mkdir()
    with pytest.raises(UserError, match=r"holds thesis.txt, which demo did not write: give anoth"):
        clear(folder, ("run",), "demo")
    assert (folder / "run").is_dir()


def test_a_tensor_that_transformers_misses_fails():
    assert load_check({"missing_keys": [], "unexpected_keys": []}).ok
    found = load_check({"missing_keys": ["a"], "unexpected_keys": []})
    assert found == ("from_pretrained", "1 missing, 0 unexpected", "0 and 0", False)
