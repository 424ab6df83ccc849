"""Runs Python files with a user's rules, and names the line of what goes wrong in them.

Such a file is code. It runs only because the user named it: never because it lies in a checkpoint,
and never because a checkpoint names it.
"""

import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from jaxllm.errors import CheckpointError, MissingCheckpointError, UserError


class RulesError(UserError):
    """A fault in a user's rules. The message begins with their file and, if known, the line."""


class RulesSource(NamedTuple):
    """Where rules come from, and their attributes.

    Attributes:
        given: the file's absolute path, or the object.
        file: the path to name in messages.
        get: returns an attribute of this name, or the default.
    """

    given: Any
    file: str
    get: Callable[[str, Any], Any]

    @property
    def name(self) -> str:
        """The name of the file."""
        return Path(self.file).name


def read_rules(rules: Any) -> RulesSource:
    """Returns the attributes of rules.

    Args:
        rules: the path of a Python file, which is run, or a module or object with attributes.

    Raises:
        CheckpointError: the file does not exist.
        RulesError: the file raises an exception.
    """
    if not isinstance(rules, str | Path):
        file = getattr(rules, "__file__", None) or "rules"
        return RulesSource(rules, file, lambda name, default: getattr(rules, name, default))
    path = Path(rules).resolve()
    if not path.is_file():
        raise MissingCheckpointError(f"rules={str(rules)!r} is not a file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text: {error}") from None
    return RulesSource(path, str(path), _run(path, text).get)


@lru_cache
def _run(path: Path, text: str) -> Mapping[str, Any]:
    """Runs a rules file with this text and returns its attributes.

    Like a script, the file can import modules beside it.

    Raises:
        RulesError: the file raises an exception; the message gives its line.
    """
    with _importing_from(path.parent), naming_faults(str(path), str(path)):
        attributes = runpy.run_path(str(path), run_name=path.stem)
    build: Any = attributes.get("reference")

    def reference(fields: Any) -> Any:
        with _importing_from(path.parent), naming_faults(path.name, str(path)):
            return build(fields)

    return attributes if build is None else {**attributes, "reference": reference}


@contextmanager
def naming_faults(name: str, file: str) -> Iterator[None]:
    """Within this context, any exception becomes a RulesError that names the rules and the line."""
    try:
        yield
    except RulesError:
        raise
    except Exception as error:  # user code may raise anything
        lines = list(_lines(file, error))
        place = f"{name}, line {lines[-1]}" if lines else name
        is_ours = type(error) is ValueError or isinstance(error, UserError)
        kind = "" if is_ours else f"{type(error).__name__}: "
        raise RulesError(f"{place}: {kind}{error}") from error


def _lines(file: str, error: Exception) -> Iterator[int | None]:
    """Yields the lines of a file that led to an error, the innermost last."""
    frames = traceback.extract_tb(error.__traceback__)
    yield from (frame.lineno for frame in frames if frame.filename == file)
    if isinstance(error, SyntaxError) and error.filename == file:
        yield error.lineno


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
