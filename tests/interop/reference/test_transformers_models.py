"""Operations that need transformers name the extra to install if it is missing."""

import sys

import pytest

from jaxllm.errors import MissingPackageError
from jaxllm.interop.reference.transformers_models import require_torch


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_missing_package_is_named_with_the_extra_to_install(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MissingPackageError, match=rf"{package} is not installed: .*jaxllm\[torch\]"
    ):
        require_torch()
