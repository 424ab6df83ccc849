"""Summary tables of a report: a row for each level, layer or range of positions."""

from collections.abc import Iterator

from jaxllm.interop.parity.report.activation_rows import TapResult
from jaxllm.interop.parity.report.judged import Judged
from jaxllm.interop.parity.report.report import Bucket, LogitsResult, ReportData

from .outline import outline
from .sentences import compared, mark, name, number, worst_row
from .table import Row, Table


def levels_table(report: ReportData) -> Table:
    """Tabulates the levels, each with its first failure or else its row closest to failing."""
    columns = ("level", "compared", "first failure, else closest to its threshold")
    rows = []
    for level, results in report.rows.items():
        if level in report.verdicts:
            held = report.verdicts[level]
            cells = (f"{mark(held)} {level}", compared(level, report), *_decisive(results))
            rows.append(Row(cells, held))
    return Table((*columns, "error", "noise floor", "threshold"), tuple(rows), len(columns))


def _decisive(rows: tuple[Judged, ...]) -> tuple[str, ...]:
    """Returns the row that decides a level, its error, noise floor and threshold, or blanks."""
    worst = worst_row(rows) if rows else None
    if worst is None or not (worst.threshold or worst.measured):
        return "", "", "", ""
    if not worst.threshold:  # only equality is accepted
        return name(worst), "", "", ""
    return name(worst), *map(number, (worst.measured, worst.floor, worst.threshold))


def layers_table(report: ReportData) -> Table:
    """Tabulates the layers, each by its first failing activation or the one closest to failing."""
    columns = ("activation", "error", "own error", "noise floor", "threshold", "error / threshold")
    table = Table(columns, tuple(map(_activation_row, _decisive_activations(report))))
    is_measured = any(tap.forced is not None for tap in report.taps)
    return table if is_measured else table.without("own error")


def _decisive_activations(report: ReportData) -> Iterator[TapResult]:
    parts = outline(report.taps)
    yield from parts.before
    for taps in parts.layers.values():
        yield worst_row(taps.values())
    yield from parts.after


def _activation_row(tap: TapResult) -> Row:
    own = "" if tap.forced is None else number(tap.forced.measured)
    ratio = f"{tap.ratio:.2f}" if tap.ok else number(tap.ratio)
    cells = (number(tap.cumulative.measured), own, *map(number, (tap.floor, tap.threshold)))
    return Row((tap.path, *cells, ratio), tap.ok)


def positions_table(report: ReportData, logits: LogitsResult) -> Table:
    """Tabulates the logits' errors for each range of positions, and for all positions."""
    columns = ("positions", "tokens", "relative L2", "mean KL", "largest KL", "same top-1")
    ranges: list[tuple[str, int, Bucket | LogitsResult]] = [
        *((bucket.label, bucket.tokens, bucket) for bucket in report.buckets),
        ("all", report.tokens, logits),
    ]
    rows = (
        Row(
            (
                *(label, f"{tokens:,}"),
                *map(number, (result.relative_l2, result.kl_mean, result.kl_max)),
                f"{result.top1_agreement:.2%}",
            )
        )
        for label, tokens, result in ranges
    )
    return Table(columns, tuple(rows))
