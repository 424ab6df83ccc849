"""Entry point of the `jaxllm` command line; `jaxllm --help` lists commands and exit statuses."""

import argparse
import sys
from collections.abc import Sequence

from .commands import checkpoints, convert, failures, parity, runs
from .commands.environment import open_streams, set_environment
from .commands.generation import chat, generate, serve
from .commands.operations import data, doctor, evaluate, new, plan, watching
from .commands.options import AddCommand
from .commands.parser import CommandParser, Run, ShowVersions
from .commands.walkthroughs import commands as walkthroughs
from .untrusted.printable import note_names


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    Args:
        argv: the arguments, without the program's name. Default: those of the process.
    """
    open_streams()
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        return failures.closed_pipe()
    except KeyboardInterrupt as error:
        return failures.interrupted(error)


def _run(argv: list[str]) -> int:
    arguments = argparse.Namespace(debug="--debug" in argv)
    note_names(argv)
    try:
        set_environment()
        arguments, rest = make_parser().parse_known_args(argv)
        arguments.parser.check_unknown(rest)
        arguments.overrides = rest
        return arguments.run(arguments)
    except BrokenPipeError:
        raise
    except Exception as error:
        return failures.report(error, debug=arguments.debug)


def make_parser() -> CommandParser:
    """Returns the parser of the whole command line; imports neither jax nor torch."""
    parser = CommandParser(
        prog="jaxllm",
        description="Move language models between PyTorch and JAX with the numbers proven equal,\n"
        "and train and sample them.",
        epilog=f"`jaxllm COMMAND --help` explains a command.\n\n{failures.EXIT_STATUSES}",
    )
    parser.add_argument(
        "--version", action=ShowVersions, help="print the versions of jaxllm and its frameworks"
    )
    parser.set_defaults(debug=False)
    commands = parser.add_subparsers(
        title="commands", dest="command", required=True, metavar="COMMAND"
    )

    def add(name: str, run: Run, purpose: str, example: str) -> CommandParser:
        # argparse shows `help` in the list of commands and `description` in the command's own help.
        command = commands.add_parser(name, help=purpose, add_help=name != "train")
        command.describe(run, purpose, example)
        return command

    add_command: AddCommand = add
    first = (walkthroughs, new, runs, plan, data, generate, chat, serve, evaluate, convert)
    for module in (*first, checkpoints, parity, doctor, watching):
        module.add_commands(add_command)
    return parser
