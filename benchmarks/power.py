"""`python benchmarks/power.py MEASURE [CHECKPOINT]`: what parity can see, for docs/power.md.

Every measurement is added to benchmarks/power.jsonl as soon as it is made, and is not repeated:
an interrupted run is continued by the same command. The page is written from that file.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import jaxllm  # noqa: F401 - before tests/, which has a folder of that name

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))
import zoo  # noqa: E402
from power_measures import (  # noqa: E402
    KINDS,
    Placed,
    absent,
    members,
    planted,
    subject,
    weakest,
)
from power_page import PAGE, Results, page, reason_of  # noqa: E402
from weak_bugs import BUGS  # noqa: E402

TINY = ("llama/llama3", "gpt2")


def measure_weakest(results: Results, arguments: argparse.Namespace) -> None:
    """Finds the weakest bugs that are noticed in a checkpoint or in tiny models."""
    path = arguments.checkpoint
    with tempfile.TemporaryDirectory() as folder:
        if path is not None:
            paths = {path.name: path}
        else:
            paths = {f"tiny {name}": Path(folder) / name for name in TINY}
            for name in TINY:
                zoo.build(zoo.ZooModel("", name, 0)).save_pretrained(paths[f"tiny {name}"])
        for name, checkpoint in paths.items():
            if bugs := [bug for bug in BUGS if results.lacks("weakest", bug.name, name)]:
                one = subject(name, checkpoint)
                for bug in bugs:
                    results.add("weakest", bug.name, name, strength=weakest(one, bug))


def measure_planted(results: Results, arguments: argparse.Namespace) -> None:
    """Plants the bugs of the tests in a checkpoint."""
    name = arguments.checkpoint.name
    found = planted(arguments.checkpoint, lambda trial: results.lacks("planted", name, *trial))
    for trial, values in found:
        results.add("planted", name, *trial, **values)


def measure_absent(results: Results, arguments: argparse.Namespace) -> None:
    """Lists the bugs of the tests that a checkpoint has no place for."""
    name = arguments.checkpoint.name
    for bug in absent(arguments.checkpoint):
        if results.lacks("absent", name, bug):
            results.add("absent", name, bug, reason=reason_of(bug))


def measure_zoo(results: Results, arguments: argparse.Namespace) -> None:
    """Compares correct models that resemble trained ones."""
    for member in members():
        key = ("zoo", *map(str, member))
        if results.lacks(*key):
            with tempfile.TemporaryDirectory() as folder:
                report = zoo.check(member, Path(folder) / "model")
            results.add(*key, alarm=None if report.ok else report.first_divergence.path)


def measure_seeds(results: Results, arguments: argparse.Namespace) -> None:
    """Compares a checkpoint on text and on random tokens, at all levels."""
    path, sizes = arguments.checkpoint, dict(arguments.mesh)
    meshes: dict[str, dict[str, int]] = {"one device": {}}
    if sizes:
        meshes[" x ".join(f"{axis}={size}" for axis, size in sizes.items())] = sizes
    placed = Placed(path, meshes)
    for seed in range(arguments.seeds):
        kind = KINDS[seed % len(KINDS)]
        keys = {name: ("seeds", path.name, name, kind, str(seed)) for name in meshes}
        if any(results.lacks(*key) for key in keys.values()):
            for name, found in placed.compare(kind, seed):
                results.add(*keys[name], **found)


MEASURES = {
    "weakest": measure_weakest,
    "planted": measure_planted,
    "absent": measure_absent,
    "zoo": measure_zoo,
    "seeds": measure_seeds,
    "page": lambda results, arguments: None,
}


def main() -> None:
    """Measures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--mesh", nargs="+", type=_axis, default=[], metavar="AXIS=SIZE")
    arguments, results = parser.parse_args(), Results()
    if arguments.measure in ("planted", "absent", "seeds") and arguments.checkpoint is None:
        parser.error(f"{arguments.measure} needs a checkpoint")
    try:
        MEASURES[arguments.measure](results, arguments)
    finally:
        PAGE.write_text(page(results.known))


def _axis(text: str) -> tuple[str, int]:
    axis, size = text.split("=")
    return axis, int(size)


if __name__ == "__main__":
    main()
