"""What the options of several commands have in common."""

import argparse
from collections.abc import Callable

# Adds a command: its name, what runs it, its purpose.
Add = Callable[..., argparse.ArgumentParser]


def add_rules(command: argparse.ArgumentParser) -> None:
    """The option for a model of the user's own."""
    command.add_argument(
        "--rules", help="a Python file, which is run: a model of your own (docs/rules.md)"
    )


def count(text: str) -> int:
    """A whole number of at least one, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
