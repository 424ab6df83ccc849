"""The command `convert`: converts a checkpoint to another format."""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jaxllm.errors import UserError

from .choices import FormatNames
from .environment import say
from .options import (
    CHECKPOINT,
    MAX_RAM,
    AddCommand,
    add_dtype,
    add_max_ram,
    add_reading,
    add_step,
    allowances,
    count,
)

PEFT = "peft"  # no format of whole models


def add_commands(add: AddCommand) -> None:
    """Adds `convert` to the command line."""
    convert = add(
        "convert",
        _convert,
        "Write a checkpoint in another format.",
        "jaxllm convert runs/tiny exported/llama --to hf",
    )
    convert.add_argument("source", metavar="SOURCE", help=CHECKPOINT)
    convert.add_argument("destination", metavar="DESTINATION", help="a new folder")
    convert.add_argument(
        "--to",
        metavar="FORMAT",
        choices=FormatNames(PEFT),
        help="%(choices)s (default: hf); peft writes the adapter of a run with LoRA",
    )
    convert.add_argument(
        "--merge",
        action="store_true",
        help="SOURCE is an adapter, of PEFT or of a run: write its base with the adapter merged in",
    )
    convert.add_argument(
        "--base", metavar="PATH", help="with --merge: the base (default: as the adapter names it)"
    )
    add_dtype(convert)
    convert.add_argument(
        "--model-parallel", type=count, metavar="N", help="number of shards, for --to meta"
    )
    add_step(convert)
    add_max_ram(convert)
    add_reading(convert)
    _add_optimizer_options(convert)
    convert.epilog = f"After an interruption the same command resumes.\n\n{convert.epilog}"


def _add_optimizer_options(convert: argparse.ArgumentParser) -> None:
    optimizer = convert.add_argument_group("the optimizer's state (docs/frameworks.md)")
    optimizer.add_argument(
        "--with-optimizer",
        action="store_true",
        help="also convert the AdamW state: from a run to PyTorch, or from PyTorch into a run",
    )
    optimizer.add_argument(
        "--config", metavar="YAML", help="into a run: the run's config, with init_from"
    )
    optimizer.add_argument(
        "--optimizer",
        metavar="PATH",
        help="into a run: the optimizer's file or DCP folder (default: in SOURCE)",
    )
    forms = ("state_dict", "dcp")
    optimizer.add_argument(
        "--optimizer-format", choices=forms, help="from a run: what to write (default: state_dict)"
    )
    optimizer.add_argument(
        "--parameter-names",
        metavar="FILE",
        help="the PyTorch model's parameter names in order, one per line (default: the order of "
        "the family)",
    )


def _convert(arguments: argparse.Namespace) -> int:
    from jaxllm.interop import convert
    from jaxllm.interop.formats.byte_sizes import format_size

    from . import convert_optimizer

    if arguments.base is not None and not arguments.merge:
        raise UserError("--base: only with --merge")
    if arguments.to == PEFT:
        return _to_peft(arguments)
    if convert_optimizer.is_into_run(arguments):
        return convert_optimizer.into_run(arguments)
    optimizer = convert_optimizer.optimizer_of(arguments) if arguments.with_optimizer else None
    begun = time.perf_counter()
    with _progress_bar(arguments.destination) as progress:
        done = convert(
            arguments.source,
            arguments.destination,
            to=arguments.to or "hf",
            dtype=arguments.dtype,
            model_parallel=arguments.model_parallel,
            step=arguments.step,
            max_ram=arguments.max_ram or MAX_RAM,
            progress=progress,
            rules=arguments.rules,
            optimizer=optimizer,
            merge=arguments.base or arguments.merge,
            **allowances(arguments),
        )
    seconds = time.perf_counter() - begun
    kept = f" ({format_size(done.num_bytes_kept)} already written)" if done.num_bytes_kept else ""
    say(
        f"{arguments.destination}: {done.format_name}, {format_size(done.num_bytes)}{kept}, "
        f"{seconds:.1f} s"
    )
    return 0


def _to_peft(arguments: argparse.Namespace) -> int:
    from jaxllm.interop.adapters.run_to_peft import run_to_peft

    given = {"--merge": arguments.merge, "--dtype": arguments.dtype, "--rules": arguments.rules}
    given["--with-optimizer"] = arguments.with_optimizer
    if wrong := [name for name, value in given.items() if value]:
        raise UserError(f"{', '.join(wrong)}: not with --to peft")
    run_to_peft(arguments.source, arguments.destination, arguments.step)
    say(f"{arguments.destination}: an adapter for PEFT")
    return 0


@contextmanager
def _progress_bar(purpose: str) -> Iterator[Callable[[int, int], None] | None]:
    """Shows a progress bar on a terminal.

    Yields:
        A callback that takes the bytes done and the total bytes; None without a terminal.
    """
    from rich import progress
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        yield None
        return
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(purpose, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
