"""Runs benchmarks with 8 virtual devices in their own process, since JAX fixes the number early."""

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
    """Runs a script that calls `write_figures` in a process of its own and returns its results."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = [sys.executable, script, "--rounds", str(rounds), "--json", str(figures)]
        subprocess.run(command, check=True, env={**os.environ, "JAX_NUM_CPU_DEVICES": "8"})
        return [Comparison(**row) for row in json.loads(figures.read_text())]


def write_figures(title: str, measure: Callable[[Path, int], Iterable[Comparison]]) -> None:
    """Entry point of such a script: measures in a temporary folder and writes a JSON file.

    Args:
        title: the description in the script's help.
        measure: yields the comparisons, given a folder and the number of rounds.
    """
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--rounds", type=int, default=7, help="timed runs (%(default)s)")
    parser.add_argument("--json", required=True, help="file to write the results to")
    parser.add_argument("--folder", help="parent of the temporary weights folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = [row._asdict() for row in measure(Path(folder), arguments.rounds)]
    Path(arguments.json).write_text(json.dumps(rows, indent=2) + "\n")
