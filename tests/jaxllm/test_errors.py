"""Errors of the user: one class, which programs may also catch as the built-in ones."""

import pytest

from jaxllm.errors import MissingFileError, MissingPackageError, NonFiniteError, UserError
from jaxllm.interop import CheckpointError
from jaxllm.train import ConfigError


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (UserError, ValueError),
        (CheckpointError, ValueError),
        (ConfigError, ValueError),
        (MissingFileError, FileNotFoundError),
        (MissingPackageError, ModuleNotFoundError),
        (NonFiniteError, FloatingPointError),
    ],
)
def test_an_error_is_of_the_user_and_of_a_builtin_kind(error, builtin):
    for kind in (UserError, ValueError, builtin):
        with pytest.raises(kind, match=r"^what is wrong$"):
            raise error("what is wrong")
