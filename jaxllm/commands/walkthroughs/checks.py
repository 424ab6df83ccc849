"""Checks of a walkthrough: each verification with its result, and the table of all of them."""

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from jaxllm.errors import UserError
from jaxllm.generation import generate
from jaxllm.interop.parity import Report
from jaxllm.models.decoder import Decoder
from jaxllm.train.mesh import use_virtual_devices
from jaxllm.train.monitoring.metrics import read_metrics

log = logging.getLogger("jaxllm")


class Check(NamedTuple):
    """One verification and its result."""

    name: str
    measured: str
    required: str
    ok: bool


def run_checks(folder: Path, checks: Iterator[Check]) -> bool:
    """Takes the steps of a walkthrough, prints their checks and returns whether all pass.

    Args:
        folder: where the steps write their files.
        checks: takes the next step when it is asked for the next check.
    """
    begun = time.monotonic()
    found: list[Check] = []
    for check in checks:
        found.append(check)
        log.info("%s %s: %s", "ok  " if check.ok else "FAIL", check.name, check.measured)
    _summarize(folder, found, time.monotonic() - begun)
    return all(check.ok for check in found)


def clear(folder: Path, made: Sequence[str], command: str) -> None:
    """Removes what the command made in a folder earlier. Raises UserError if it holds more."""
    folder.mkdir(parents=True, exist_ok=True)
    if foreign := sorted({path.name for path in folder.iterdir()} - set(made)):
        raise UserError(
            f"{folder} holds {', '.join(foreign)}, which {command} did not write: give another "
            "--output"
        )
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def prepare(folder: Path, made: Sequence[str], command: str, devices: int) -> None:
    """Clears the folder, and sets up virtual devices and exact products for this process.

    Raises:
        UserError: the folder holds what `command` did not make.
    """
    clear(folder, made, command)
    use_virtual_devices(devices)
    jax.config.update("jax_default_matmul_precision", "highest")


def held_out_losses(folder: Path) -> list[float]:
    """Returns the held-out losses that the run in this folder measured, in order."""
    return [
        record["held_out_loss"]
        for record in read_metrics(folder / "metrics.jsonl")
        if "held_out_loss" in record
    ]


def parity_check(name: str, report: Report, folder: Path, stage: str) -> Check:
    """Writes a parity report as HTML and returns its verdict."""
    report.write_html(folder / f"parity_{stage}.html")
    assert report.logits is not None, "walkthroughs always compare logits"
    error = report.logits.relative_l2
    measured = f"relative L2 {error:.1e}, {report.tokens} tokens"
    return Check(name, measured, "<= 1e-5", report.ok and error <= 1e-5)


def load_check(complaints: dict[str, list]) -> Check:
    """Returns the verdict on how transformers loads an export."""
    found = ", ".join(f"{len(keys)} {kind.split('_')[0]}" for kind, keys in complaints.items())
    return Check("from_pretrained", found, "0 and 0", not any(complaints.values()))


def greedy_check(
    model: Decoder, mesh: Mesh, prompts: Sequence[list[int]], theirs: list[list[int]]
) -> Check:
    """Compares greedy continuations, all of one length, with those of transformers."""
    with jax.set_mesh(mesh):
        ours = generate(model, prompts, len(theirs[0]))
    equal = int(np.sum(np.equal(ours, theirs)))
    return Check("greedy tokens", f"{equal} of {np.size(ours)} equal", "all", ours == theirs)


def _summarize(folder: Path, checks: Sequence[Check], seconds: float) -> None:
    table = Table(title=f"\nMeasured in this run, in {seconds:.0f} s", title_justify="left")
    for column in ("", "check", "measured", "required"):
        table.add_column(column)
    for check in checks:
        table.add_row("ok" if check.ok else "FAIL", check.name, check.measured, check.required)
    console = Console()
    console.print(table)
    for path in sorted(folder.iterdir()):
        files = [file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
        size = sum(file.stat().st_size for file in files) / 1e3
        console.print(f"  {path}{'/' if path.is_dir() else ''}  {size:,.0f} kB", highlight=False)
