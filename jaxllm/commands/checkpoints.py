"""Commands about what lies in a folder: `convert`, `verify`, `inspect` and `suggest`."""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .options import Add, add_rules, count

if TYPE_CHECKING:
    from jaxllm.config import Config


def add_commands(add: Add) -> None:
    """All of them."""
    _add_convert_options(add("convert", _convert, "Write a checkpoint in another spelling."))
    purpose = "Prove that a checkpoint survives the way there and back."
    _add_verify_options(add("verify", _verify, purpose))

    inspect = add("inspect", _inspect, "Say what lies in a folder, and whether it would load.")
    inspect.add_argument("path", help="any folder of tensors")
    inspect.add_argument("--json", action="store_true", help="print everything as JSON")
    add_rules(inspect)

    suggest = add("suggest", _suggest, "Propose rules for tensors that have none.")
    suggest.add_argument("path", help="a file or a folder of tensors")
    suggest.add_argument("--config", help="a YAML file of the fields of the model's config")
    add_rules(suggest)


def _add_convert_options(convert: argparse.ArgumentParser) -> None:
    add_rules(convert)
    convert.add_argument("source", help="a checkpoint of any known family, or a run")
    convert.add_argument("destination", help="a folder that does not exist yet")
    convert.add_argument(
        "--to", metavar="FORMAT", choices=_Formats(), help="%(choices)s; default: hf"
    )
    convert.add_argument("--dtype", help="float32, bfloat16 or float16; default: as stored")
    convert.add_argument("--model-parallel", type=count, help="shards to write, for meta")
    convert.add_argument("--step", type=int, help="of a run; default: its newest")
    convert.add_argument("--max-ram", default="256MiB", help="for tensors (%(default)s)")
    _add_optimizer_options(convert)
    convert.epilog = "After a kill the same command goes on where it was."


class _Formats:
    """The formats that can be written, imported when they are asked for."""

    def __iter__(self) -> Iterator[str]:
        from jaxllm.interop.formats.table import writable_formats

        return iter(writable_formats())


def _add_optimizer_options(convert: argparse.ArgumentParser) -> None:
    convert.add_argument(
        "--with-optimizer",
        action="store_true",
        help="take the state of AdamW along: of a run, for PyTorch; or PyTorch's, into a run",
    )
    convert.add_argument("--config", help="into a run: its YAML file, with init_from")
    convert.add_argument(
        "--optimizer", metavar="PATH", help="into a run: PyTorch's file or DCP folder, if elsewhere"
    )
    forms = ("state_dict", "dcp")
    convert.add_argument("--optimizer-format", choices=forms, help="of a run; default: state_dict")
    convert.add_argument(
        "--parameter-names",
        metavar="FILE",
        help="of the PyTorch model in its order, one on each line, if nothing else says it",
    )


def _add_verify_options(verify: argparse.ArgumentParser) -> None:
    add_rules(verify)
    verify.add_argument("path", help="a checkpoint of any known family, or a run")
    verify.add_argument("--step", type=int, help="of a run; default: its newest")
    verify.add_argument(
        "--manifest", help="a file of the tensors' sha256: compared if it exists, else written"
    )
    verify.add_argument("--max-ram", default="256MiB", help="for tensors (%(default)s)")
    verify.add_argument("--json", action="store_true", help="print the findings as JSON")


def _convert(arguments: argparse.Namespace) -> int:
    from jaxllm.interop import convert
    from jaxllm.interop.formats.byte_sizes import spell_size

    from . import handover

    if handover.is_into_run(arguments):
        return handover.into_run(arguments)
    begun = time.perf_counter()
    with _progress_bar(arguments.destination) as progress:
        done = convert(
            arguments.source,
            arguments.destination,
            to=arguments.to or "hf",
            dtype=arguments.dtype,
            model_parallel=arguments.model_parallel,
            step=arguments.step,
            max_ram=arguments.max_ram,
            progress=progress,
            rules=arguments.rules,
            optimizer=handover.optimizer_of(arguments) if arguments.with_optimizer else None,
        )
    seconds = time.perf_counter() - begun
    kept = (
        f", {spell_size(done.num_bytes_kept)} of them there already" if done.num_bytes_kept else ""
    )
    print(
        f"{arguments.destination}: {done.spelling}, {spell_size(done.num_bytes)}{kept}, "
        f"{seconds:.1f} s"
    )
    return 0


@contextmanager
def _progress_bar(purpose: str) -> Iterator[Callable[[int, int], None] | None]:
    """A function to be told of bytes done and to be done; None where nobody looks."""
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


def _verify(arguments: argparse.Namespace) -> int:
    from jaxllm.interop import verify

    found = verify(
        arguments.path,
        step=arguments.step,
        manifest=arguments.manifest,
        max_ram=arguments.max_ram,
        rules=arguments.rules,
    )
    if arguments.json:
        print(json.dumps(found.to_json()))
    else:
        for problem in found.problems:
            print(problem)
        print(found.summary)
    return 0 if found.ok else 1


def _inspect(arguments: argparse.Namespace) -> int:
    from jaxllm.interop import inspect

    inspection = inspect(arguments.path, rules=arguments.rules)
    if arguments.json:
        print(json.dumps(inspection.to_json()))
    else:
        from rich.console import Console

        from jaxllm.interop.inspection.inspect_table import render

        Console().print(render(inspection))
    return 0 if inspection.ok else 1


def _suggest(arguments: argparse.Namespace) -> int:
    from jaxllm.interop import suggest

    config = None if arguments.config is None else _read_config(Path(arguments.config))
    print(suggest(arguments.path, config, rules=arguments.rules))
    return 0


def _read_config(path: Path) -> "Config":
    import yaml

    from jaxllm.config import from_dict

    fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(fields, dict):
        raise ValueError(f"{path} is not a file of fields")
    return from_dict(fields)
