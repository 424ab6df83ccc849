"""Optimized HLO as data: computations, their instructions, and how often each of them runs."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from jaxllm.layers.experts.grouped_rows import expected_times

_BYTES = {
    "pred": 1.0,
    **dict.fromkeys(("s4", "u4", "f4e2m1fn"), 0.5),
    **dict.fromkeys(("s8", "u8", "f8e4m3fn", "f8e5m2", "f8e4m3", "f8e8m0fnu"), 1.0),
    **dict.fromkeys(("s16", "u16", "bf16", "f16"), 2.0),
    **dict.fromkeys(("s32", "u32", "f32"), 4.0),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8.0),
}
_SHAPE = re.compile(rf"\b({'|'.join(_BYTES)})\[([0-9,]*)\]")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{\s*")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)")
_CALLED = re.compile(
    r"(?:calls|to_apply|called_computations|branch_computations|true_computation|false_computation)"
    r"=(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_LOOP = re.compile(r"(body|condition)=%?([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count"?:\s*\{"?n"?:"?(\d+)')


class Shape(NamedTuple):
    """An array of a program: its dtype as HLO writes it, and its dimensions."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> float:
        """Its bytes."""
        return _BYTES[self.dtype] * math.prod(self.dims)


class Instruction(NamedTuple):
    """One instruction, with the text of its operands and attributes."""

    name: str
    shape: str  # as HLO writes it; a tuple has several
    op: str
    rest: str  # operands and attributes

    @property
    def outputs(self) -> list[Shape]:
        """The arrays that it returns."""
        return shapes(self.shape)

    @property
    def operands(self) -> list[str]:
        """The names of its operands."""
        return re.findall(r"%([\w.\-]+)", re.split(r"\)(?:, |$)", self.rest)[0])

    @property
    def called(self) -> list[str]:
        """The names of the computations that it calls, those of a loop aside."""
        found = ("".join(groups) for groups in _CALLED.findall(self.rest))  # several, or one
        return [name.strip(" %") for names in found for name in names.split(",")]

    @property
    def scope(self) -> str:
        """The path of the operation in the traced program; "" if there is none."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match[1] if match else ""


class Module(NamedTuple):
    """A compiled program."""

    computations: dict[str, list[Instruction]]
    entry: str
    runs: Counter[str]  # how often each computation runs in one execution of the program
    unknown_loops: list[str]  # loops whose number of trips is not known; counted once

    def instructions(self) -> Iterator[tuple[str, Instruction, int]]:
        """Yields the computation, the instruction and its number of runs, if it runs at all."""
        for name, instructions in self.computations.items():
            if self.runs[name]:
                yield from ((name, one, self.runs[name]) for one in instructions)


def shapes(text: str) -> list[Shape]:
    """Returns the arrays that a text names, such as `(f32[2,3], bf16[4])`."""
    return [
        Shape(dtype, tuple(int(size) for size in dims.split(",") if size))
        for dtype, dims in _SHAPE.findall(text)
    ]


def parse(text: str) -> Module:
    """Parses the text of a compiled program. Raises ValueError if it has no entry computation."""
    computations: dict[str, list[Instruction]] = {}
    current: list[Instruction] | None = None
    entry = ""
    for line in text.splitlines():
        if head := _HEAD.fullmatch(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.rstrip() == "}":  # attributes of kernels span lines, which may begin with "}}"
            current = None
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.append(Instruction(*found.groups()))
    if not entry:
        raise ValueError("the text has no ENTRY computation; give that of an optimized HLO module")
    return Module(computations, entry, *_count_runs(computations, entry))


def _count_runs(
    computations: dict[str, list[Instruction]], entry: str
) -> tuple[Counter[str], list[str]]:
    runs: Counter[str] = Counter()
    unknown: list[str] = []

    def visit(name: str, times: int) -> None:
        runs[name] += times
        for one in computations.get(name, ()):
            if one.op == "while":
                trips = _trips(one, computations)
                if trips is None:
                    unknown.append(one.name)
                for _, inner in _LOOP.findall(one.rest):
                    visit(inner, times * (trips or 1))
            elif one.op not in ("all-reduce", "all-reduce-start", "reduce-scatter", "reduce"):
                for inner in one.called:
                    visit(inner, times)

    visit(entry, 1)
    return runs, unknown


def _trips(loop: Instruction, computations: dict[str, list[Instruction]]) -> int | None:
    """Returns how often a loop runs: as XLA notes it, its name expects, or its condition compares.

    A windowed einsum of the partitioner advances by two where its body has the constant 2.
    """
    if known := _TRIPS.search(loop.rest):
        return int(known[1])
    if expected := expected_times(loop.rest):
        return expected
    parts = dict(_LOOP.findall(loop.rest))
    condition = list(computations.get(parts.get("condition", ""), ()))
    for one in tuple(condition):  # the constant may be fused into the comparison
        condition += [inner for name in one.called for inner in computations.get(name, ())]
    bounds = [value for one in condition if (value := _constant(one)) is not None]
    if not bounds:
        return None
    body = parts.get("body", "")
    is_pairwise = "windowed_dot_general" in body and 2 in map(_constant, computations.get(body, ()))
    return -(-max(bounds) // 2) if is_pairwise else max(bounds)


def _constant(one: Instruction) -> int | None:
    """Returns the value of an integer scalar constant."""
    is_scalar = one.op == "constant" and re.match(r"[su]32\[\]", one.shape)
    value = re.match(r"(\d+)\)", one.rest)
    return int(value[1]) if is_scalar and value else None
