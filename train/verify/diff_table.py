"""What differs between two runs, for a terminal."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from .diff import Diff

WORST = 10  # arrays that are listed


def render(diff: Diff) -> RenderableType:
    """The verdict, and a table of each kind of thing that differs."""
    return Group(headline(diff), *_tables(diff))


def headline(diff: Diff) -> str:
    """Where the runs part, in a sentence."""
    if diff.same:
        last = min(diff.last_steps)
        saved = ", ".join(map(str, diff.checkpoints)) or "none"
        return f"The runs are the same up to step {last}; checkpoints compared: {saved}."
    if diff.step is None:
        return f"The runs see other data: {', '.join(field.name for field in diff.data)}."
    if diff.metrics and diff.metrics[0].step == diff.step:
        names = ", ".join(m.name for m in diff.metrics if m.step == diff.step)
        return f"The runs part at step {diff.step}: {names}."
    worst = diff.arrays[0]
    return f"The runs part by step {diff.step}: the {worst.what} of {worst.name} the most."


def _tables(diff: Diff) -> Iterator[Table]:
    for title, fields in (("config", diff.config), ("data", diff.data)):
        if fields:
            table = Table(title, diff.a, diff.b, "", box=SIMPLE_HEAD)
            for field in fields:
                remark = "changes no number" if field.is_free else ""
                table.add_row(field.name, str(field.a), str(field.b), remark)
            yield table
    if diff.metrics:
        table = Table("metric", "from step", diff.a, diff.b, box=SIMPLE_HEAD)
        for column in ("relative", "steps", "at most"):
            table.add_column(column, justify="right")
        for metric in diff.metrics:
            figures = (f"{metric.relative:.1e}", str(metric.steps), f"{metric.most:.1e}")
            table.add_row(metric.name, str(metric.step), repr(metric.a), repr(metric.b), *figures)
        yield table
    if diff.arrays:
        title = f"step {diff.checkpoints[-1]}: {len(diff.arrays)} arrays differ"
        table = Table(title, "", "relative L2", box=SIMPLE_HEAD)
        for array in diff.arrays[:WORST]:
            table.add_row(array.what, array.name, f"{array.relative_l2:.1e}")
        yield table
