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


def test_only_similar_names_are_suggested():
    assert nearest("metta", ["hf", "meta", "native"]) == "meta"
    assert nearest("gguf", ["hf", "meta", "native"]) is None
    assert did_you_mean("lama", ["mamba", "llama"]) == "; did you mean 'llama'?"
    assert did_you_mean("zzz", ["mamba", "llama"]) == ""
