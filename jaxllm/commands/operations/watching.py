"""Commands that look at runs, also while they train: `runs` and `plot`."""

import argparse
import json
from typing import TYPE_CHECKING

from jaxllm.commands.environment import print_rich, say
from jaxllm.commands.failures import complain
from jaxllm.commands.options import AddCommand, add_json
from jaxllm.errors import on_one_line
from jaxllm.untrusted.printable import literal, note_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from jaxllm.train.monitoring.run_list import RunState


def add_commands(add: AddCommand) -> None:
    """Adds `runs` and `plot` to the command line."""
    runs = add(
        "runs", _runs, "List the runs in a folder: state, step, loss, speed.", "jaxllm runs runs"
    )
    runs.add_argument(
        "folder", nargs="?", default="runs", metavar="FOLDER", help="(default: %(default)s)"
    )
    add_json(runs, "the runs")
    plot = add(
        "plot",
        _plot,
        "Compare the curves of runs: a picture and a web page.",
        "jaxllm plot runs/tiny runs/other --output compared",
    )
    plot.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a run")
    plot.add_argument(
        "--output",
        default="runs/plot",
        metavar="NAME",
        help="write NAME.png and NAME.html (default: %(default)s)",
    )


def _runs(arguments: argparse.Namespace) -> int:
    from jaxllm.train.monitoring.run_list import list_runs

    found = list_runs(arguments.folder)
    if arguments.json:
        print(json.dumps([run.to_json() for run in found]))
    elif found:
        print_rich(_table(found))
        note_names(run.name for run in found)
        complain("\n".join(run.problem for run in found if run.problem))
    else:
        say(f"no runs in {arguments.folder}")
    return 0


def _plot(arguments: argparse.Namespace) -> int:
    from jaxllm.storage.paths import check_output
    from jaxllm.train.monitoring.compared_runs import compare_runs

    png, page = compare_runs(arguments.runs, check_output(arguments.output))
    say(f"wrote {png}  {page}")
    return 0


def _table(runs: "Sequence[RunState]") -> "Table":
    """A row for each run, the one that was written to last at the end."""
    from rich.table import Table

    colors = {"running": "green", "finished": "blue", "stopped": "yellow"}
    table = Table("run", "state", "step", "loss", "held out", "tokens/s", "MFU", "last written")
    for column in table.columns[2:7]:
        column.justify = "right"
    for run in runs:
        table.add_row(
            literal(on_one_line(run.name)),
            f"[{colors.get(run.state, 'red')}]{run.state}",
            f"{run.step:,}/{'?' if run.steps is None else f'{run.steps:,}'}",
            "" if run.loss is None else f"{run.loss:.4f}",
            "" if run.held_out_loss is None else f"{run.held_out_loss:.4f}",
            "" if run.tokens_per_s is None else f"{run.tokens_per_s:,.0f}",
            "" if run.mfu is None else f"{run.mfu:.1%}",
            _ago(run.seconds_ago),
        )
    return table


def _ago(seconds: float) -> str:
    """Says how long ago something was, in the largest unit that fits."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
