"""Benchmarks that need 8 virtual devices: jax fixes their number when it starts."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from side_by_side import Comparison


def run_script(script: str, rounds: int) -> list[Comparison]:
    """The figures of a script whose `__main__` is `write_figures`, run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = [sys.executable, script, "--rounds", str(rounds), "--json", str(figures)]
        subprocess.run(command, check=True, env={**os.environ, "JAX_NUM_CPU_DEVICES": "8"})
        return [Comparison(**row) for row in json.loads(figures.read_text())]


def write_figures(title: str, measure: Callable[[Path, int], Iterable[Comparison]]) -> None:
    """Measures in a temporary folder as the command line says, and writes the figures to a file."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--rounds", type=int, default=7, help="(%(default)s)")
    parser.add_argument("--json", required=True, help="file for the figures")
    parser.add_argument("--folder", help="where to put the weights; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = [row._asdict() for row in measure(Path(folder), arguments.rounds)]
    Path(arguments.json).write_text(json.dumps(rows, indent=2) + "\n")
