"""Collectives of a compiled program: how often each runs, on how many bytes."""

import math
import re
from collections import Counter
from typing import NamedTuple

import jax

KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|ragged-all-to-all"
BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}
ARRAY = re.compile(r"\b(pred|bf16|f16|f32|s32|u32)\[([0-9,]*)\]")


class Collective(NamedTuple):
    """A collective of the optimized HLO."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]  # of its results on one device
    bytes: int  # of its results on one device, in one run
    runs: int  # how often it runs, by the trips of its loops


def collectives(compiled: jax.stages.Compiled) -> list[Collective]:
    """Returns the collectives of a compiled program, those of loops with their trips."""
    bodies = _computations(compiled.as_text())
    runs = _runs(bodies)
    found = []
    for name, lines in bodies.items():
        for line in lines:
            if match := re.search(rf" = (.*?) ({KINDS})(-start)?\(", line):
                arrays = [
                    (dtype, tuple(int(size) for size in shape.split(",") if size))
                    for dtype, shape in ARRAY.findall(match[1])
                ]
                total = sum(BYTES[dtype] * math.prod(shape) for dtype, shape in arrays)
                shapes = tuple(shape for _, shape in arrays)
                found.append(Collective(match[2], shapes, total, runs[name]))
    return found


def _computations(text: str) -> dict[str, list[str]]:
    """Splits HLO text into its computations; the entry is named ENTRY."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if start := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            lines = found["ENTRY" if start[1] else start[2]] = []
        lines.append(line)
    return found


def _runs(bodies: dict[str, list[str]]) -> Counter[str]:
    """Counts how often each computation runs."""
    runs: Counter[str] = Counter()

    def visit(name: str, times: int) -> None:
        runs[name] += times
        for line in bodies[name]:
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            more = int(trips[1]) if trips else 1
            for called in re.findall(
                r"(?:body|calls|to_apply|branch_computations)=%?([\w.\-]+)", line
            ):
                if called in bodies and " all-reduce" not in line and " reduce-scatter" not in line:
                    visit(called, times * more)

    visit("ENTRY", 1)
    return runs
