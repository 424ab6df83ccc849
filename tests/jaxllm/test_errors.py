"""User errors share one class and can also be caught as the matching built-in exceptions."""

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
def test_error_is_a_user_error_and_a_builtin_exception(error, builtin):
    for kind in (UserError, ValueError, builtin):
        with pytest.raises(kind, match=r"^what is wrong$"):
            raise error("what is wrong")
