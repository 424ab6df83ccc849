"""`make bench`: runs every benchmark against its peers and reports ratios with their spread.

    python benchmarks/run.py [--rounds 7] [--json FILE]

The exit status is 1 if a ratio is below its target.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import data_input
import decode
import experts
import export_weights
import generation
import import_weights
import jax
import lora
import state_dicts
import train_step
from rich.console import Console
from rich.table import Table


def main() -> int:
    """Runs all benchmarks and prints a table with one row per comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="timed runs (%(default)s)")
    parser.add_argument("--json", help="file to write the results to")
    arguments = parser.parse_args()
    results = train_step.run(arguments.rounds) + lora.run(arguments.rounds)
    results.append(decode.run(arguments.rounds))
    results += generation.run(arguments.rounds)
    results += experts.run(arguments.rounds)
    results += import_weights.run(arguments.rounds)
    results += export_weights.run(arguments.rounds)
    results += state_dicts.run(arguments.rounds)
    results += data_input.run(arguments.rounds)
    device = jax.devices()[0]
    where = f"{device.platform} {device.device_kind}, {os.cpu_count()} cores, {platform.machine()}"
    table = Table(title=f"jaxllm against its peers: {where}", title_justify="left")
    for column in ("benchmark", "jaxllm", "peer", "peer / jaxllm", "quartiles", "target"):
        table.add_column(column)
    for result in results:
        low, high = result.spread
        table.add_row(
            result.name,
            f"{result.ours:.3f} {result.unit}",
            f"{result.theirs:.3f} {result.unit}",
            f"{result.ratio:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{result.target:.2f}",
        )
    Console().print(table)
    if arguments.json:
        figures = {"where": where, "results": [result._asdict() for result in results]}
        Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if all(result.ratio >= result.target for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
