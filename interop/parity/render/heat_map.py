"""Heat map data: error / threshold of every activation of every layer."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

from jaxllm.interop.parity.report.activation_rows import Error, TapResult
from jaxllm.interop.parity.report.report import ReportData

from .outline import outline
from .sentences import number

# Ranges of error / threshold as powers of ten; the style sheet gives each a gradient of colors.
RANGES = {"within": (-2.0, 0.0), "beyond": (0.0, 2.0), "far": (2.0, 5.0)}
MAX_NUMBERED = 14  # columns; with more, cells have no room for numbers
NAMED_LAYERS = 30  # with more layers, only every second, third, ... column has a layer number


class Heat(NamedTuple):
    """A color: a range of error / threshold, and the position in that range in percent."""

    range: str
    percent: int = 0


class Cell(NamedTuple):
    """An activation of a layer."""

    error: str  # after all preceding activations
    heat: Heat  # color of that error
    own: Heat | None  # color of its own error, computed from the reference's inputs
    is_first: bool  # whether it is the first divergence
    details: str  # every number of the activation, line by line


@dataclasses.dataclass(frozen=True)
class Column:
    """A layer, or a module outside of layers, which has a single cell in the last row."""

    name: str
    cells: dict[str, Cell]
    is_layer: bool = True


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """A column for each layer and a row for each of its activations."""

    activations: tuple[str, ...]
    columns: tuple[Column, ...]
    stacks: tuple[tuple[str, int], ...]  # spans of columns: a stack's name, or "" outside of stacks

    @property
    def has_numbers(self) -> bool:
        """Whether cells are wide enough for numbers."""
        return len(self.columns) <= MAX_NUMBERED


def heat_map(report: ReportData) -> HeatMap:
    """Arranges the activations of a report by layer and by name in the layer."""
    parts, first = outline(report.taps), report.first_divergence
    activations = parts.activations or ("output",)
    stride = math.ceil(len(parts.layers) / NAMED_LAYERS)

    def module(tap: TapResult) -> Column:
        return Column(tap.path, {activations[-1]: _cell(tap, first)}, is_layer=False)

    def layer(path: str) -> Column:
        index = path.rpartition(".")[2]
        cells = {name: _cell(tap, first) for name, tap in parts.layers[path].items()}
        return Column(index if int(index) % stride == 0 else "", cells)

    columns = (*map(module, parts.before), *map(layer, parts.layers), *map(module, parts.after))
    stacks = [path.rpartition("layers.")[0].rstrip(".") for path in parts.layers]
    names = (*("" for _ in parts.before), *stacks, *("" for _ in parts.after))
    spans = tuple((name, len(list(group))) for name, group in itertools.groupby(names))
    return HeatMap(activations, columns, spans if any(stacks) else ())


def legend() -> Iterator[tuple[Heat, str]]:
    """Yields colors in half powers of ten, with a label for every whole power."""
    for at in range(-4, 10):
        exponent = at / 2
        label = "" if at % 2 else f"{10**exponent:g}" if exponent < 3 else f"1e{exponent:.0f}"
        yield heat(1.001 * 10**exponent), label


def heat(ratio: float) -> Heat:
    """Returns the color of an error that is `ratio` times its threshold; it jumps at 1."""
    if math.isnan(ratio):
        return Heat("undefined")
    exponent = math.log10(ratio) if ratio > 0 else -math.inf
    for name, (low, high) in RANGES.items():
        if exponent <= high:
            return Heat(name, round(100 * (max(exponent, low) - low) / (high - low)))
    return Heat("far", 100)


def _cell(tap: TapResult, first: object) -> Cell:
    own = None if tap.forced is None else heat(tap.forced.ratio)
    error = tap.cumulative
    return Cell(number(error.measured), heat(error.ratio), own, tap is first, _details(tap))


def _details(tap: TapResult) -> str:
    """Lists every number of an activation, line by line."""
    lines = [tap.path, f"after all preceding activations: {_numbers(tap.cumulative)}"]
    if tap.forced is not None:
        lines.append(f"from the reference's inputs: {_numbers(tap.forced)}")
    lines.append(f"largest difference / RMS: {number(tap.max_over_rms)}")
    ulps = (("median", tap.ulp_p50), ("99th percentile", tap.ulp_p99), ("largest", tap.ulp_max))
    lines.append("ULPs: " + ", ".join(f"{what} {number(value)}" for what, value in ulps))
    return "\n".join(lines)


def _numbers(error: Error) -> str:
    outside = error.outside
    direction = (
        ""
        if outside is None
        else f" ({number(outside)} outside of the direction that rounding errors share)"
    )
    return (
        f"distance from float64: {number(error.relative_l2)}{direction}; of the reference "
        f"{number(error.reference)}, noise floor {number(error.floor)}, threshold "
        f"{number(error.threshold)}, error / threshold {number(error.ratio)}"
    )
