"""Terminal tables for the differences between two runs."""

from collections.abc import Iterable, Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from jaxllm.untrusted.printable import literal

from .diff import Diff, FieldDifference, MetricDifference

WORST = 10  # number of arrays to list


def render(diff: Diff) -> RenderableType:
    """Renders the verdict and one table each for differing config, data, metrics and arrays."""
    return Group(headline(diff), *filter(None, [_names(diff)]), *_tables(diff))


def headline(diff: Diff) -> str:
    """Summarizes in one sentence where the runs diverge."""
    if diff.same:
        last = min(diff.last_steps)
        saved = ", ".join(map(str, diff.checkpoints)) or "none"
        return f"The runs are the same up to step {last}; checkpoints compared: {saved}."
    if diff.step is None:
        return f"The runs use different data: {', '.join(field.name for field in diff.data)}."
    if diff.metrics and diff.metrics[0].step == diff.step:
        names = ", ".join(m.name for m in diff.metrics if m.step == diff.step)
        return f"The runs diverge at step {diff.step}: {names}."
    worst = diff.arrays[0]
    return f"The runs have diverged by step {diff.step}, most in {worst.name} ({worst.what})."


def _names(diff: Diff) -> str:
    """The legend of the columns A and B."""
    return "" if diff.same and not diff.config else f"A is {diff.a}\nB is {diff.b}"


def _tables(diff: Diff) -> Iterator[Table]:
    for title, fields in (("config field", diff.config), ("data", diff.data)):
        if fields:
            yield _fields(title, fields)
    if diff.metrics:
        yield _metrics(diff.metrics)
    if diff.arrays:
        yield _arrays(diff)


def _fields(title: str, fields: Iterable[FieldDifference]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for column in (title, "A", "B", "effect"):
        table.add_column(column, overflow="fold")
    for field in fields:
        effect = "none on any number" if field.is_free else ""
        table.add_row(*map(literal, (field.name, str(field.a), str(field.b), effect)))
    return table


def _metrics(metrics: Iterable[MetricDifference]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("metric", no_wrap=True)
    table.add_column("differs", justify="right", no_wrap=True)
    table.add_column("value there", no_wrap=True)
    table.add_column("relative\nerror there\nand largest", justify="right", no_wrap=True)
    for metric in metrics:  # two lines each, which fit in 60 columns
        table.add_row(
            literal(metric.name),
            f"from {metric.step}\n{metric.steps} steps",
            f"A {metric.a:.9g}\nB {metric.b:.9g}",  # 9 digits distinguish any two float32
            f"{metric.relative:.1e}\n{metric.most:.1e}",
        )
    return table


def _arrays(diff: Diff) -> Table:
    title = f"Step {diff.checkpoints[-1]}: {len(diff.arrays)} arrays differ"
    if len(diff.arrays) > WORST:
        title += f", the {WORST} with the largest errors:"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("kind", no_wrap=True)
    table.add_column("array", overflow="fold")
    table.add_column("relative\nL2 error", justify="right", no_wrap=True)
    for array in diff.arrays[:WORST]:
        table.add_row(array.what, literal(array.name), f"{array.relative_l2:.1e}")
    return table
