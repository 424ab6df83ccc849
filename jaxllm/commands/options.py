"""Options shared by several commands, and parsers of their values."""

import argparse
import re
from pathlib import Path
from typing import Any, Protocol, get_args

from jaxllm.config import Dtype
from jaxllm.config.checks import MAX_INT, MAX_SEED
from jaxllm.errors import UserError, did_you_mean
from jaxllm.untrusted.regular_files import check_is_regular

from .choices import LevelNames
from .parser import CommandParser, Run

DTYPES = get_args(Dtype)
MAX_RAM = "256MiB"
# The help of an argument that names a checkpoint to read.
CHECKPOINT = "a checkpoint of a known family, a GGUF file, a run, or hf://ORG/NAME[@REVISION]"


class AddCommand(Protocol):
    """A function that adds a command to the command line."""

    def __call__(self, name: str, run: Run, purpose: str, example: str) -> CommandParser:
        """Adds a command and returns its parser, to add options to.

        Args:
            name: of the command.
            run: runs the command.
            purpose: one sentence for the help.
            example: a command line for the help.
        """


def add_rules(command: argparse.ArgumentParser) -> None:
    """Adds the option for the user's own PyTorch model."""
    command.add_argument(
        "--rules",
        metavar="FILE",
        help="a Python file that describes your own PyTorch model; it is executed (docs/rules.md)",
    )


def add_reading(command: argparse.ArgumentParser) -> None:
    """Adds the options that say how checkpoints are read."""
    add_rules(command)
    add_allowances(command)


def add_allowances(command: argparse.ArgumentParser) -> None:
    """Adds the options for checkpoints with fields or tensors that are not understood."""
    group = command.add_argument_group("fields and tensors that are not understood")
    group.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="FIELD[=VALUE]",
        help="read a config field as absent, or as having this value; the numbers may then differ "
        "from the original model's; repeatable",
    )
    group.add_argument(
        "--no-strict",
        dest="strict",
        action="store_false",
        help="ignore tensors that belong to no part of the model",
    )


def allowances(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of `add_allowances` as arguments of `load_pretrained`."""
    return {"strict": arguments.strict, "allow": arguments.allow}


def add_json(command: argparse.ArgumentParser, what: str) -> None:
    """Adds the option to print `what` as JSON."""
    command.add_argument("--json", action="store_true", help=f"print {what} as JSON")


def add_processes(command: argparse.ArgumentParser) -> None:
    """Adds the options that say where the processes of a job meet, their number and this one's."""
    group = command.add_argument_group(
        "several processes (docs/pods.md; default: as the environment says)"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where the processes meet")
    group.add_argument("--num-processes", type=count, metavar="N", help="how many there are")
    group.add_argument("--process-id", type=index, metavar="I", help="which one this is, from 0")


def add_max_ram(command: argparse.ArgumentParser) -> None:
    """Adds the option that bounds host memory; None if it is not given."""
    command.add_argument(
        "--max-ram",
        metavar="SIZE",
        help=f"host memory for tensors, such as 2GB, 256MiB or bytes (default: {MAX_RAM})",
    )


def add_step(command: argparse.ArgumentParser) -> None:
    """Adds the option that selects a checkpoint of a run."""
    command.add_argument(
        "--step", type=index, metavar="N", help="step of the run (default: the newest)"
    )


def add_dtype(
    command: argparse.ArgumentParser, default: str | None = None, purpose: str = ""
) -> None:
    """Adds the option that casts the weights; by default they stay as stored."""
    command.add_argument(
        "--dtype",
        choices=DTYPES,
        default=default,
        metavar="DTYPE",
        help=f"{purpose}%(choices)s (default: {default or 'as stored'})",
    )


def add_count(
    command: argparse.ArgumentParser, name: str, default: int, purpose: str, metavar: str = "N"
) -> None:
    """Adds an option that takes a whole number of at least 1."""
    command.add_argument(
        name,
        type=count,
        default=default,
        metavar=metavar,
        help=f"{purpose} (default: %(default)s)",
    )


def add_seed(command: argparse._ActionsContainer, purpose: str) -> None:
    """Adds the option for a random seed."""
    command.add_argument(
        "--seed", type=seed, default=0, metavar="N", help=f"{purpose} (default: %(default)s)"
    )


def count(text: str) -> int:
    """Parses a whole number of at least 1, for argparse."""
    return _whole_number(text, 1, MAX_INT)


def index(text: str) -> int:
    """Parses a whole number from 0 on, for argparse."""
    return _whole_number(text, 0, MAX_INT)


def seed(text: str) -> int:
    """Parses a random seed, for argparse."""
    return _whole_number(text, 0, MAX_SEED)


def unicode_text(text: str) -> str:
    """Checks that an argument is valid Unicode, for argparse: Python keeps bytes that are not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8 text") from None
    return text


def is_whole_number(text: str, least: int, most: int = MAX_INT) -> bool:
    """Whether a text is a whole number in this range, in at most ten ASCII digits."""
    return re.fullmatch("[0-9]{1,10}", text) is not None and least <= int(text) <= most


def _whole_number(text: str, least: int, most: int) -> int:
    if not is_whole_number(text, least, most):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
    return int(text)


def read_text(path: str | Path) -> str:
    """Reads a text file. Raises UserError if it is not UTF-8."""
    check_is_regular(Path(path))
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from None


def mesh_axis(text: str) -> tuple[str, int]:
    """Parses a mesh axis and its size, such as `fsdp=4`, for argparse."""
    name, _, size = text.partition("=")
    if not name or not size:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not AXIS=SIZE; PACK and CHECKPOINT come before --mesh"
        )
    return name, count(size)


def parity_level(text: str) -> str:
    """Parses the name of a parity level, for argparse."""
    known = list(LevelNames())
    if text in known:
        return text
    hint = did_you_mean(text, known) or (
        f"; choose from {', '.join(known)}; the checkpoint comes before --levels"
    )
    raise argparse.ArgumentTypeError(f"{text!r} is not a level{hint}")


def mesh_sizes(axes: list[tuple[str, int]]) -> dict[str, int]:
    """Returns the size of each mesh axis. Raises UserError if an axis is given more than once."""
    sizes = dict(axes)
    if len(sizes) < len(axes):
        given = " ".join(f"{axis}={size}" for axis, size in axes)
        raise UserError(f"--mesh {given}: an axis is given more than once")
    return sizes


def add_random_tokens(command: argparse.ArgumentParser) -> None:
    """Adds the options of drawn inputs."""
    add_count(command, "--num-tokens", 320, "tokens per row")
    add_seed(command, "seed of the text or the random tokens")


def add_output(command: argparse.ArgumentParser) -> None:
    """Adds the option for the folder of a parity report."""
    command.add_argument(
        "--output",
        default="runs/parity",
        metavar="FOLDER",
        help="folder for parity.json and parity.html (default: %(default)s)",
    )
