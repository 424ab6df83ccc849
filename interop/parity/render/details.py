"""Tables of the rows of one level, failures first."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxllm.interop.parity.report.activation_rows import TapResult
from jaxllm.interop.parity.report.judged import Judged
from jaxllm.interop.parity.report.rows import (
    FieldResult,
    LossResult,
    OutputResult,
    ScoresResult,
    TensorResult,
    TextResult,
    WeightResult,
)

from .sentences import name, number, place
from .table import Row, Table

SHOWN = 12  # rows of a level


def level_table(results: Sequence[Judged]) -> Table:
    """Returns the table for the kind of rows that a level has."""
    draw = _TABLES.get(type(results[0]), differing_table) if results else differing_table
    return draw(results)


def differing_table(results: Iterable[Judged]) -> Table:
    """Tabulates the rows of any kind that exceed their thresholds."""
    wrong = [row for row in results if not row.ok]
    rows = (
        Row((name(row), *map(number, (row.measured, row.floor, row.threshold))), ok=False)
        for row in wrong[:SHOWN]
    )
    return Table(("row", "error", "noise floor", "threshold"), tuple(rows), 1, _omitted(wrong))


def unclear_table(results: Iterable[Judged]) -> Table:
    """Tabulates the rows that cannot tell a mistake from rounding, with their floors."""
    rows = (
        Row((name(row), row.reason, *map(number, (row.measured, row.floor, row.threshold))))
        for row in results
    )
    return Table(("row", "reason", "error", "noise floor", "threshold"), tuple(rows), 2)


def config_table(fields: Iterable[FieldResult]) -> Table:
    """Tabulates the fields that differ."""
    rows = (Row((row.path, row.ours, row.theirs), ok=False) for row in fields if not row.ok)
    return Table(("field", "model", "reference"), tuple(rows), num_text_columns=3)


def weights_table(weights: Iterable[WeightResult]) -> Table:
    """Tabulates the parameters that are not equal bit for bit."""
    unequal = [row for row in weights if not row.ok]
    rows = (Row((place(row), row.remark, *_bits(row)), ok=False) for row in unequal[:SHOWN])
    columns = ("parameter", "reason", "differing bits", "of bits")
    return Table(columns, tuple(rows), 2, _omitted(unequal))


def _bits(row: WeightResult) -> tuple[str, str]:
    differing = row.differing_bits
    return "differs (digest)" if differing is None else f"{differing:,}", f"{row.num_bits:,}"


def outputs_table(rows: Sequence[OutputResult]) -> Table:
    """Tabulates how far the outputs of two checkpoints are apart."""
    columns = ("outputs", "relative L2", "max difference", "mean KL", "largest KL", "same top-1")
    cells = (
        (
            row.path,
            *("" if x is None else number(x) for x in _distances(row)),
            "" if row.top1_agreement is None else f"{row.top1_agreement:.2%}",
        )
        for row in rows
    )
    return Table(columns, tuple(Row(each, row.ok) for each, row in zip(cells, rows, strict=True)))


def _distances(row: OutputResult) -> tuple[float | None, ...]:
    return row.relative_l2, row.max_abs, row.kl_mean, row.kl_max


def wrong_activations_table(taps: Iterable[TapResult]) -> Table:
    """Tabulates the activations that are wrong even when computed from the reference's inputs."""
    rows, wrong = [], [tap for tap in taps if tap.is_wrong_itself]
    for tap in wrong[:SHOWN]:
        own = tap.forced or tap.cumulative
        errors = (own.measured, own.reference, own.floor, own.threshold, tap.cumulative.measured)
        rows.append(Row((tap.path, *map(number, errors)), ok=False))
    columns = ("activation", "own error", "reference's error", "noise floor", "threshold")
    return Table((*columns, "cumulative error"), tuple(rows), 1, _omitted(wrong))


def tensors_table(results: Sequence[TensorResult]) -> Table:
    """Tabulates gradients, moments or updates: failures first, then the closest to failing."""
    ranked = sorted(results, key=lambda row: (not row.ok, row.ratio), reverse=True)
    rows = (
        Row(
            (
                *(place(row), row.what),
                "all gradients" if row.relative_to == "all" else "itself",
                *map(number, (row.measured, row.reference, row.floor, row.threshold)),
                f"{row.compared:.0%}",
            ),
            row.ok,
        )
        for row in ranked[:SHOWN]
    )
    columns = (
        *("parameter", "quantity", "relative to", "error", "reference's error", "noise floor"),
        "threshold",
    )
    wrong = [row for row in results if not row.ok]
    return Table((*columns, "share compared"), tuple(rows), 3, _omitted(wrong))


def losses_table(losses: Iterable[LossResult]) -> Table:
    """Tabulates the losses of every training step, on both sides and in float64."""
    rows = (
        Row(
            (
                *(row.path, f"{row.ours:.6f}", f"{row.theirs:.6f}", f"{row.truth:.6f}"),
                *map(number, (row.measured, row.floor, row.threshold)),
            ),
            row.ok,
        )
        for row in losses
    )
    columns = ("step", "model", "reference", "float64", "error", "noise floor", "threshold")
    return Table(columns, tuple(rows))


def generation_table(results: Iterable[TextResult | ScoresResult]) -> Table:
    """Tabulates generated tokens, and the logits by which they are chosen."""
    columns = ("check", "input", "result")
    return Table(columns, tuple(map(_generated, results)), len(columns))


def _generated(row: TextResult | ScoresResult) -> Row:
    check = row.path.partition(".")[2]
    if isinstance(row, ScoresResult):
        result = f"relative L2 {number(row.error.measured)}, threshold {number(row.threshold)}"
        if row.unexplained:
            result += f"; {row.unexplained} tokens kept by one side alone"
        return Row((check, "logits of every token", result), row.ok)
    equal = sum(a == b for a, b in zip(row.ours, row.theirs, strict=False))
    result = f"{equal} of {len(row.theirs)} tokens equal"
    if row.is_tie:
        rest = "the reference agrees with the rest" if row.is_confirmed else "the rest is unknown"
        result += f"; the two diverge at a tie, {rest}"
    return Row((check, f"prompt of {row.prompt_tokens} tokens", result), row.ok)


def _omitted(wrong: Sequence[object]) -> int:
    return max(0, len(wrong) - SHOWN)


_TABLES: Mapping[type, Callable[[Sequence[Any]], Table]] = {
    FieldResult: config_table,
    WeightResult: weights_table,
    TapResult: wrong_activations_table,
    OutputResult: outputs_table,
    TensorResult: tensors_table,
    LossResult: losses_table,
    TextResult: generation_table,
    ScoresResult: generation_table,
}
