"""Public API snapshot: every change of the public interface must be intended.

List a change in the CHANGELOG and update the snapshot with:

    UPDATE_PUBLIC_API=1 python -m pytest tests/test_public_api.py
"""

import dataclasses
import importlib
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SNAPSHOT = Path(__file__).with_name("public_api.txt")
PACKAGES = (
    "jaxllm.config",
    "jaxllm.models",
    "jaxllm.generation",
    "jaxllm.interop",
    "jaxllm.interop.parity",
    "jaxllm.tokenization",
    "jaxllm.train",
)


def describe(packages: tuple[str, ...] = PACKAGES) -> str:
    """Lists every public name and method of these packages, one per line, in a fixed order."""
    return "".join(f"{line}\n" for package in packages for line in _package(package))


def _package(name: str) -> Iterator[str]:
    package = importlib.import_module(name)
    for exported in sorted(package.__all__):
        value = getattr(package, exported)
        yield f"{name}.{exported}{_signature(value)}"
        if inspect.isclass(value):
            yield from (f"{name}.{exported}.{member}" for member in _members(value))


def _members(kind: type) -> Iterator[str]:
    """Yields the public methods and properties that a class defines or inherits in jaxllm."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("jaxllm"):
            found |= vars(base)
    for name in sorted(found):
        value = found[name]
        if not name.startswith("_") or name == "__call__":
            if isinstance(value, property):
                yield name
            elif isinstance(value, classmethod | staticmethod):
                yield f"{name}{_signature(value.__func__)}"
            elif inspect.isfunction(value):
                yield f"{name}{_signature(value)}"


def _signature(value: Any) -> str:
    if not callable(value) or getattr(value, "__origin__", None) is not None:
        return f" = {_plain(repr(value))}"
    if dataclasses.is_dataclass(value):
        return str(_plain(str(inspect.signature(value))))
    try:
        return _plain(str(inspect.signature(value)))
    except ValueError:
        return ""


def _plain(text: str) -> str:
    """Removes module paths and memory addresses, which are not part of the interface."""
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    return re.sub(r"\b(?:jaxllm|jax|flax|pathlib|collections)\.[\w.]+\.(?=\w+)", "", text)


@pytest.mark.pinned  # other versions write some annotations in another way
def test_the_public_interface_matches_the_snapshot():
    found = describe()
    if os.environ.get("UPDATE_PUBLIC_API"):
        SNAPSHOT.write_text(found, encoding="utf-8")
    assert found.splitlines() == SNAPSHOT.read_text(encoding="utf-8").splitlines()


def test_a_changed_signature_is_detected(monkeypatch):
    before = describe(("jaxllm.generation",))
    monkeypatch.setattr("jaxllm.generation.generate", lambda model, prompts: None)
    assert describe(("jaxllm.generation",)) != before
