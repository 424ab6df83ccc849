"""The command `jaxllm`.

Exit status: 0 if all is well, 1 if a checkpoint or a comparison is not, 2 if the command or a
config is wrong.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

from .commands import checkpoints, generating, proving, training

# These take any field of a run's config as an option.
TAKE_OVERRIDES = ("train", "parity mesh")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    arguments, rest = _parser().parse_known_args(_joined(sys.argv[1:] if argv is None else argv))
    if rest and arguments.command not in TAKE_OVERRIDES:
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        _set_environment()
        arguments.overrides = rest
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("jaxllm: interrupted", file=sys.stderr)
        return 130
    except (ValueError, FloatingPointError, OSError) as error:
        return _explain(error)


def _joined(argv: Sequence[str]) -> list[str]:
    """`parity mesh CONFIG` is a command of two words; a folder of that name is `./mesh`."""
    if argv[:1] == ["parity"] and argv[1:2] and argv[1] in ("record", "check", "mesh"):
        return [" ".join(argv[:2]), *argv[2:]]
    return list(argv)


def _explain(error: Exception) -> int:
    """Prints what is wrong, without a traceback, and returns the exit status for it."""
    from .interop import CheckpointError

    for line in str(error).splitlines():
        print(f"jaxllm: {line}", file=sys.stderr)
    return 1 if isinstance(error, CheckpointError | FloatingPointError) else 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxllm",
        description="Move language models between PyTorch and JAX with the numbers proven equal, "
        "and train and sample them.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[..., int], purpose: str, *, add_help: bool = True
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=purpose, description=purpose, add_help=add_help)
        command.set_defaults(run=run)
        return command

    for group in (training, generating, checkpoints, proving):
        group.add_commands(add)
    return parser


def _set_environment() -> None:
    """Threads for virtual devices; no progress bars and remarks of libraries below ours."""
    if devices := os.environ.get("JAX_NUM_CPU_DEVICES"):
        # XLA's own default starves collectives; see `train.mesh.use_virtual_devices`.
        os.environ.setdefault("NPROC", str(8 * int(devices)))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("absl").setLevel(logging.ERROR)
