"""Writes and reads docs/mutations.md, the results of all trials."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from .trial import Outcome, Trial

COLUMNS = (
    *("bug", "family", "to be found by", "found by", "place named", "right"),
    *("over threshold", "over floor", "hint"),
)
INTRODUCTION = """\
# Mutations: the parity gate is tested

This page shows how far a passed parity report can be trusted: a mutation test of
`jaxllm.interop.parity.compare`. Each bug below was planted in a model of every family that it
applies to: in its weights, its config, a function of jaxllm, the optimizer or the loss. `compare`,
which knows nothing of the bugs, had to catch it at the given level, while the levels before that
one pass, and to name the wrong place. Bugs in the weights or the config have a second row, in which
the forward pass alone must find them. The models are tiny, with random numbers in every tensor, in
float32 on CPU. `python benchmarks/mutations.py` writes this page.

Errors are multiples of the threshold and of the reference's rounding-noise floor. `exact` means
that only equality passes, or that no noise was measured. Correct models are compared as well, to
count false alarms: with other weights and tokens for every seed and, where left padding means the
same on both sides, with left padding.
"""


def render(outcomes: Mapping[Trial, Outcome], num_correct: int, alarms: Sequence[str]) -> str:
    """Renders the page; `num_correct` is how many correct models were compared."""
    caught = sum(outcome.is_caught for outcome in outcomes.values())
    right = sum(outcome.is_right for outcome in outcomes.values())
    count, classes = len(outcomes), {trial.mutation.name for trial in outcomes}
    families = {trial.family for trial in outcomes}
    lines = [
        INTRODUCTION,
        f"**{len(classes)} bugs in {len(families)} families: {caught} of {count} caught, {right}"
        f" named at the right place ({right / count:.1%}). {len(alarms)} false alarms over"
        f" {num_correct} correct models.**",
        *(["", "False alarms: " + "; ".join(alarms)] if alarms else []),
        "",
        *_summary(outcomes),
        "",
        "## Every trial",
        "",
        *_table(COLUMNS, (_cells(trial, outcome) for trial, outcome in outcomes.items())),
    ]
    return "\n".join(lines) + "\n"


def read(page: Path) -> dict[str, dict[str, str]]:
    """Reads the rows of the page's last table, by the names of their trials."""
    rows = {}
    for line in page.read_text().partition("## Every trial")[2].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(COLUMNS) and cells[0] not in (COLUMNS[0], "---"):
            row = dict(zip(COLUMNS, cells, strict=True))
            rows[", ".join(cells[:3])] = row
    return rows


def _summary(outcomes: Mapping[Trial, Outcome]) -> list[str]:
    """Tabulates how each bug was found over all its families."""
    kinds: dict[tuple[str, str], list[Outcome]] = {}
    for trial, outcome in outcomes.items():
        kinds.setdefault((trial.mutation.name, trial.level), []).append(outcome)
    rows = (
        (
            *kind,
            f"{sum(o.is_caught for o in found)} of {len(found)}",
            f"{sum(o.is_right for o in found)} of {len(found)}",
            _multiple(min(o.over_threshold for o in found)),
            _multiple(min(o.over_floor for o in found)),
        )
        for kind, found in kinds.items()
    )
    columns = ("bug", "found by", "caught", "right", "least over threshold", "least over floor")
    return _table(columns, rows)


def _cells(trial: Trial, outcome: Outcome) -> tuple[str, ...]:
    return (
        *(trial.mutation.name, trial.family, trial.level),
        *(outcome.level or "nothing", outcome.named, "yes" if outcome.is_right else "no"),
        *(_multiple(outcome.over_threshold), _multiple(outcome.over_floor), outcome.hint),
    )


def _multiple(value: float) -> str:
    if math.isnan(value):
        return "not a number"
    return "exact" if math.isinf(value) else f"{value:.2g}" if value < 100 else f"{value:.1e}"


def _table(columns, rows) -> list[str]:
    lines = (columns, ["---"] * len(columns), *rows)
    return [f"| {' | '.join(cells)} |" for cells in lines]
