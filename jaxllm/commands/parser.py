"""Argument parser with subcommands, suggestions for misspelled names, and `--version`."""

import argparse
import itertools
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any, NoReturn

from jaxllm.errors import nearest

# Runs a command with its parsed arguments and returns the exit status.
Run = Callable[[argparse.Namespace], int]

VERSIONS_OF = ("jaxllm", "jax", "flax", "torch", "transformers")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions, and aligns the help of options at column 28."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28)


class CommandParser(argparse.ArgumentParser):
    """Parser of a command that can also have subcommands.

    If the first argument names a subcommand, the subcommand parses the rest; otherwise the
    arguments are the command's own. The error for an unknown name suggests the nearest known one.
    """

    def __init__(self, **options: Any):
        super().__init__(formatter_class=_Formatter, **options)
        self.given: list[str] = []  # the arguments that are being parsed
        self.subcommands: dict[str, CommandParser] = {}
        self.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,  # keeps a --debug that stands before the command
            help="print the traceback of an error",
        )

    def describe(self, run: Run, purpose: str, example: str) -> None:
        """Sets the function that runs the command, and the purpose and example in its help."""
        self.description = purpose
        self.epilog = f"example:\n  {example}"
        self.set_defaults(run=run, parser=self, takes_overrides=False)

    def add_subcommand(self, name: str, run: Run, purpose: str, example: str) -> "CommandParser":
        """Adds a subcommand, called by this command's name followed by `name`."""
        if not self.subcommands:
            title = "subcommands (for a checkpoint folder of the same name, write ./NAME)"
            self._listing = self.add_argument_group(title, "")
        self._listing.description = f"{self._listing.description}{name:<10}{purpose}\n"
        command = CommandParser(prog=f"{self.prog} {name}")
        command.describe(run, purpose, example)
        self.subcommands[name] = command
        return command

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses the arguments, by a subcommand if the first one after `--debug` names it."""
        self.given = list(args or ())
        start = next((i for i, text in enumerate(self.given) if text != "--debug"), 0)
        if self.given and self.subcommands:
            first, rest = self.given[start], [*self.given[:start], *self.given[start + 1 :]]
            if first in self.subcommands:
                return self.subcommands[first].parse_known_args(rest, namespace)
            is_path = os.sep in first or os.path.exists(first)
            if not is_path and (meant := nearest(first, self.subcommands)):
                self.error(f"{first!r} does not exist; did you mean '{self.prog} {meant}'?")
        return super().parse_known_args(args, namespace)

    def check_unknown(self, unknown: Sequence[str]) -> None:
        """Exits with status 2 if this command takes none of the unknown arguments.

        Commands that take overrides of a config accept all but misspelled options of their own.
        """
        if self._defaults.get("takes_overrides"):
            unknown = [text for text in unknown if self._meant([text])]
        if unknown:
            super().error(self._explain(unknown))

    def error(self, message: str) -> NoReturn:
        """Exits with status 2 and a message, which also lists the unknown options."""
        is_command = self._subparsers is None and not self._defaults.get("takes_overrides")
        options = itertools.takewhile(lambda text: text != "--", self.given if is_command else ())
        unknown = [text for text in options if self._is_unknown_option(text)]
        super().error("; ".join([message, *([self._explain(unknown)] if unknown else [])]))

    def _is_unknown_option(self, text: str) -> bool:
        option = text.partition("=")[0]
        abbreviates = any(known.startswith(option) for known in self._option_string_actions)
        return option.startswith("--") and " " not in option and not abbreviates

    def _explain(self, unknown: Sequence[str]) -> str:
        meant = self._meant(unknown)
        hint = f"; did you mean {', '.join(meant)}?" if meant else ""
        return f"unrecognized arguments: {' '.join(unknown)}{hint}"

    def _meant(self, unknown: Sequence[str]) -> list[str]:
        """Returns the options of this command that the unknown arguments probably misspell."""
        known = list(self._option_string_actions)
        options = [text.partition("=")[0] for text in unknown if text.startswith("-")]
        return [near for option in options if (near := nearest(option, known))]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        meant = nearest(str(value), action.choices)
        known = f"did you mean {meant!r}?" if meant else f"choose from {', '.join(action.choices)}"
        raise argparse.ArgumentError(action, f"invalid choice: {value!r}; {known}")


class ShowVersions(argparse.Action):
    """The argparse action of `--version`: prints versions without imports, then exits."""

    def __init__(self, **options: Any):
        super().__init__(nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Prints one package per line and exits."""
        for line in versions():
            print(line)
        parser.exit()


def versions() -> Iterator[str]:
    """Yields name and version of jaxllm, of the installed frameworks, and of Python."""
    for name in VERSIONS_OF:
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    yield f"python {platform.python_version()}"
