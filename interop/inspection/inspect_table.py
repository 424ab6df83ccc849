"""Renders an inspection for the terminal."""

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jaxllm.errors import on_one_line
from jaxllm.interop.formats.byte_sizes import format_size
from jaxllm.untrusted.printable import literal, printable

from .inspect import UNKNOWN, Inspection


def render(inspection: Inspection) -> RenderableType:
    """Renders the folded tensors, the use of config fields, the totals, notes and problems."""
    lines = [
        _fields(inspection),
        f"total: {inspection.num_values:,} values, {format_size(inspection.num_bytes)}",
        *_planned(inspection),
        *inspection.notes,
    ]
    summary = literal("\n".join(on_one_line(line) for line in lines if line))
    problems = Text(
        printable("\n".join(f"✗ {on_one_line(problem)}" for problem in inspection.problems)),
        style="red",
    )
    return Group(_tensors(inspection), summary, *([problems] if inspection.problems else []))


def _tensors(inspection: Inspection) -> Table:
    family = inspection.family or "no known family"
    title = literal(on_one_line(f"{inspection.path}: {family}"))
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("tensor and the parameter it becomes", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    for group in inspection.tensors:
        shape = " x ".join(map(str, group.shape)) or "scalar"
        style = "red" if group.use == UNKNOWN else None
        what = literal(f"{on_one_line(group.name)}\n  ")
        what.append(printable(f"{group.dtype} {shape} → {group.use}"), style="dim")
        table.add_row(what, format_size(group.num_bytes), style=style)
    return table


def _fields(inspection: Inspection) -> str:
    """Counts the config fields that are read, and names the others."""
    by_use: dict[str, list[str]] = {}
    for name, use in inspection.fields.items():
        by_use.setdefault(use, []).append(name)
    if not inspection.fields:
        return ""
    parts = [f"config: {len(by_use.pop('read', []))} fields read"]
    parts += [f"{use}: {', '.join(names)}" for use, names in by_use.items()]
    return "; ".join(parts)


def _planned(inspection: Inspection) -> list[str]:
    if inspection.plan is None:
        return []
    (on_device,) = inspection.plan.bytes_by_device.values()
    window = format_size(inspection.plan.window_bytes)
    return [
        f"loading: {format_size(on_device)} on one device, plus at most {window} of host memory"
    ]
