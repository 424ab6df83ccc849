"""Options that several commands share, and how their values are read."""

import argparse
from pathlib import Path
from typing import Protocol

from jaxllm.errors import UserError

from .parser import CommandParser, Run


class AddCommand(Protocol):
    """Adds a command: its name, what runs it, its purpose and an example."""

    def __call__(self, name: str, run: Run, purpose: str, example: str) -> CommandParser:
        """Returns the parser, to add options to."""


def add_rules(command: argparse.ArgumentParser) -> None:
    """The option for a PyTorch model of the user's own."""
    command.add_argument(
        "--rules",
        metavar="FILE",
        help="a Python file that describes a PyTorch model of your own; it is executed "
        "(docs/rules.md)",
    )


def add_json(command: argparse.ArgumentParser, what: str) -> None:
    """The option to print the result as JSON instead."""
    command.add_argument("--json", action="store_true", help=f"print {what} as JSON")


def add_max_ram(command: argparse.ArgumentParser) -> None:
    """The option that bounds host memory."""
    command.add_argument(
        "--max-ram",
        default="256MiB",
        metavar="SIZE",
        help="host memory for tensors, in bytes or such as 2GB or 256MiB (default: %(default)s)",
    )


def add_step(command: argparse.ArgumentParser) -> None:
    """The option that chooses a checkpoint of a run."""
    command.add_argument(
        "--step", type=int, metavar="N", help="which step of a run (default: its newest)"
    )


def add_dtype(command: argparse.ArgumentParser) -> None:
    """The option that casts the weights."""
    command.add_argument("--dtype", help="float32, bfloat16 or float16 (default: as stored)")


def count(text: str) -> int:
    """A whole number of at least one, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def read_text(path: str | Path) -> str:
    """The text of a file that the user named. Raises UserError if it is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from None
