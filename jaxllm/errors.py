"""Errors that the user can fix. Any other exception is a bug in jaxllm."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import ClassVar, TypeVar

Item = TypeVar("Item")
MOST_LISTED = 100  # problems of one kind, of which each may need a search for what was meant
# Names that are compared with a misspelled one, and their letters: the search takes their product.
_MOST_KNOWN, _MOST_LETTERS = 1000, 200


def on_one_line(text: object) -> str:
    r"""Returns a name or another text that belongs on one line, with `\n` for its line breaks."""
    return str(text).replace("\n", "\\n")


class UserError(ValueError):
    """An invalid argument, file, config or installation.

    The message names what is wrong, one line per problem. Commands print the message without a
    traceback and exit with `exit_status`; they report any other exception as an internal error.
    """

    exit_status: ClassVar[int] = 2


class CheckpointError(UserError):
    """The problems of a checkpoint, one per line; `problems` holds the lines.

    Args:
        problems: one problem or several.
        place: what all of them are about, such as a path; it becomes the heading.
    """

    exit_status = 1

    def __init__(self, problems: str | Sequence[str], place: object = None):
        given = (problems,) if isinstance(problems, str) else problems
        self.problems = tuple(map(on_one_line, given))  # names in them may have line breaks
        indented = (f"  {problem}" for problem in self.problems)
        lines = self.problems if place is None else (f"{on_one_line(place)}:", *indented)
        super().__init__("\n".join(lines))

    def within(self, place: object) -> list[str]:
        """Returns the problems, each prefixed with the place where it occurred."""
        return [f"{place}: {problem}" for problem in self.problems]


# The last of the problems of data that jaxllm would not have written so.
OTHER_VERSION = "written by another version of jaxllm, or damaged"


class MissingFileError(UserError, FileNotFoundError):
    """A file that does not exist, or a file pattern that matches nothing."""


class MissingCheckpointError(CheckpointError):
    """A path that is not a checkpoint at all: nothing is there, or a file in place of a folder."""

    exit_status = UserError.exit_status


class CheckpointArgumentError(CheckpointError):
    """A wrong argument of reading or writing a checkpoint.

    For example, a format or a step that does not exist, or a destination that is taken.
    """

    exit_status = UserError.exit_status


class NarrowingError(CheckpointArgumentError):
    """A dtype whose range is too small: finite numbers would become infinite."""


class MissingPackageError(UserError, ModuleNotFoundError):
    """An optional package that a command needs is not installed."""


class NonFiniteError(UserError, FloatingPointError):
    """The loss or the gradients of a training run, or logits to choose a token from, are NaN."""

    exit_status = 1


def nearest(name: str, known: Iterable[str], likeness: float = 0.7) -> str | None:
    """Returns the known name that `name` probably misspells, or None; long ones are left out.

    Args:
        name: the name.
        known: the known names.
        likeness: the least share of letters that the two must have in common, up to 1.
    """
    if len(name) > _MOST_LETTERS:
        return None
    short = [one for one in islice(known, _MOST_KNOWN) if len(one) <= _MOST_LETTERS]
    return next(iter(difflib.get_close_matches(name, short, n=1, cutoff=likeness)), None)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message or, if it has none, the name of its class."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def listed(items: Sequence[Item], describe: Callable[[Item], str]) -> list[str]:
    """Describes the first `MOST_LISTED` items, and says how many more there are."""
    more = len(items) - MOST_LISTED
    lines = [describe(item) for item in items[:MOST_LISTED]]
    return [*lines, f"and {more:,} more of this kind"] if more > 0 else lines


def did_you_mean(name: str, known: Iterable[str], likeness: float = 0.7) -> str:
    """Returns a clause that suggests the nearest known name, or an empty string; see `nearest`."""
    meant = nearest(name, known, likeness)
    return f"; did you mean {meant!r}?" if meant else ""
