"""Options shared by several commands reject invalid values."""

import argparse

import pytest

from jaxllm.cli import main
from jaxllm.commands.options import count, read_text
from jaxllm.errors import UserError


@pytest.mark.parametrize("command", ["inspect", "verify", "parity", "convert", "suggest"])
def test_missing_rules_file_is_named(command, byte_model, tmp_path, capsys):
    rest = [str(tmp_path / "out")] if command == "convert" else []
    assert main([command, str(byte_model), *rest, "--rules", "nothing.py"]) == 1
    assert "rules='nothing.py' is not a file" in capsys.readouterr().err


def test_count_accepts_only_whole_numbers_of_at_least_one():
    assert count("12") == 12
    for text in ("0", "-1", "1.5", "two", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="whole number of at least 1"):
            count(text)


def test_text_that_is_not_utf_8_is_a_user_error(byte_model, tmp_path, capsys):
    (tmp_path / "text.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"text\.txt is not UTF-8"):
        read_text(tmp_path / "text.txt")
    assert main(["parity", str(byte_model), "--text", str(tmp_path / "text.txt")]) == 2
    assert "is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"import no_such_module", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        (b"\n\nx = 1 / 0", "line 3: ZeroDivisionError"),
        (b"x = '\xe9'", "is not UTF-8"),
        (b"rules = []", "does not define config"),
    ],
)
def test_error_in_a_rules_file_is_a_user_error(content, said, byte_model, tmp_path, capsys):
    (tmp_path / "my_rules.py").write_bytes(content)
    assert main(["inspect", str(byte_model), "--rules", str(tmp_path / "my_rules.py")]) in (1, 2)
    err = capsys.readouterr().err
    assert "my_rules.py" in err
    assert said in err
    assert "internal error" not in err
