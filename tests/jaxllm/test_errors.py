"""User errors share one class and can also be caught as the matching built-in exceptions."""

import pytest

from jaxllm.errors import (
    CheckpointArgumentError,
    MissingCheckpointError,
    MissingFileError,
    MissingPackageError,
    NonFiniteError,
    UserError,
    did_you_mean,
    listed,
    nearest,
)
from jaxllm.interop import CheckpointError
from jaxllm.train import ConfigError


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (UserError, ValueError),
        (CheckpointError, ValueError),
        (MissingCheckpointError, CheckpointError),
        (CheckpointArgumentError, CheckpointError),
        (ConfigError, ValueError),
        (MissingFileError, FileNotFoundError),
        (MissingPackageError, ModuleNotFoundError),
        (NonFiniteError, FloatingPointError),
    ],
)
def test_error_is_a_user_error_and_a_builtin_exception(error, builtin):
    for kind in (UserError, ValueError, builtin):
        with pytest.raises(kind, match=r"^what is wrong$"):
            raise error("what is wrong")


def test_a_line_break_in_a_problem_or_a_place_begins_no_line():
    error = CheckpointError(["a\nb is missing", "c"], "folder\nd")
    assert error.problems == ("a\\nb is missing", "c")
    assert str(error) == "folder\\nd:\n  a\\nb is missing\n  c"


def test_only_similar_names_are_suggested():
    assert nearest("metta", ["hf", "meta", "native"]) == "meta"
    assert nearest("gguf", ["hf", "meta", "native"]) is None
    assert did_you_mean("lama", ["mamba", "llama"]) == "; did you mean 'llama'?"
    assert did_you_mean("zzz", ["mamba", "llama"]) == ""


def test_long_names_and_long_lists_are_not_searched():
    """The search takes the product of their lengths: minutes for names of a megabyte."""
    assert nearest("x" * 10**6, ["x" * 10**6 + "y"]) is None
    assert nearest("steps", ["x" * 10**6, "step"]) == "step"
    assert nearest("steps", (f"{i}" for i in range(10**6))) is None


def test_only_the_first_of_many_are_described():
    assert listed(range(3), str) == ["0", "1", "2"]
    assert listed(range(1100), str) == [*map(str, range(100)), "and 1,000 more of this kind"]
