"""Several runs compared: their curves in one picture, and a web page with what differs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxllm.charts import SERIES, save_chart, to_svg
from jaxllm.differences import differences
from jaxllm.errors import MissingFileError, UserError
from jaxllm.storage.paths import absolute_path, open_path
from jaxllm.storage.whole_file import write_whole
from jaxllm.train.config import load_stored, to_dict
from jaxllm.untrusted.printable import printable

from .metrics import Record, read_metrics
from .plot import TITLES, compare_curves

FEW = 300  # as many values of a setting are shown, in letters


class LoggedRun(NamedTuple):
    """A run as it was logged."""

    name: str
    config: dict[str, Any]
    records: list[Record]


def compare_runs(folders: Sequence[str], output: Path) -> tuple[Path, Path]:
    """Writes a picture of the training losses and a page of all curves and settings that differ.

    Args:
        folders: the folders of the runs, each once.
        output: the path of both files, without their suffixes.

    Returns:
        The PNG and the HTML file.

    Raises:
        MissingFileError: a folder is not one of a run; all such are named.
        UserError: no run has a loss.
    """
    runs = _read(list(dict.fromkeys(folders)))
    records = {run.name: run.records for run in runs}
    if not _with_metric(records, "loss"):
        raise UserError(f"no loss is logged yet in {', '.join(records)}")
    output.parent.mkdir(parents=True, exist_ok=True)
    png, page = (output.with_name(f"{output.name}.{suffix}") for suffix in ("png", "html"))
    save_chart(compare_curves(_with_metric(records, "loss")), png)
    write_whole(page, printable(render_page(runs)))
    return png, page


def render_page(runs: Sequence[LoggedRun]) -> str:
    """Returns a page that needs no other file: curves, last values, and settings that differ."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    records = {run.name: run.records for run in runs}
    charts = {
        name: to_svg(compare_curves(with_it, name))
        for name in TITLES
        if (with_it := _with_metric(records, name))
    }
    colors = {run.name: SERIES[index % len(SERIES)] for index, run in enumerate(runs)}
    return environment.get_template("compared_runs.html.jinja").render(
        runs=runs,
        charts=charts,
        colors=colors,
        last=[_last_values(run) for run in runs],
        settings=_settings(runs),
    )


def _with_metric(records: Mapping[str, list[Record]], name: str) -> dict[str, list[Record]]:
    return {run: rows for run, rows in records.items() if any(name in row for row in rows)}


def _last_values(run: LoggedRun) -> dict[str, str]:
    found: dict[str, float] = {}
    for record in run.records:
        found.update(record)
    formats = {
        "step": "{:,.0f}",
        "loss": "{:.4f}",
        "held_out_loss": "{:.4f}",
        "speed/tokens_per_s": "{:,.0f}",
        "speed/mfu": "{:.1%}",
        "speed/goodput": "{:.0%}",
    }
    return {name: form.format(found[name]) if name in found else ""
            for name, form in formats.items()}  # fmt: skip


def _settings(runs: Sequence[LoggedRun]) -> dict[str, list[str]]:
    """Returns the fields of the configs that differ between runs, with the value of each run."""
    first = runs[0].config
    names = dict.fromkeys(name for run in runs[1:] for name, _, _ in differences(first, run.config))
    return {
        name: [str(_value(run.config, name))[:FEW] for run in runs]
        for name in names
        if name != "output"
    }


def _value(config: Any, name: str) -> Any:
    """Returns the value of a field by its dotted name; "" if a config lacks it."""
    for part in name.split("."):
        if isinstance(config, dict):
            config = config.get(part, "")
        elif isinstance(config, list | tuple) and part.isdecimal() and int(part) < len(config):
            config = config[int(part)]
        else:
            return ""
    return config


def _read(folders: Sequence[str]) -> list[LoggedRun]:
    wrong = [
        folder
        for folder in folders
        if not all(
            (open_path(folder) / name).is_file() for name in ("config.yaml", "metrics.jsonl")
        )
    ]
    if wrong:
        lines = [f"{folder} is not the folder of a run: it has no config.yaml and metrics.jsonl"
                 for folder in wrong]  # fmt: skip
        raise MissingFileError("\n".join(lines))
    return [
        LoggedRun(
            name,
            to_dict(load_stored(open_path(folder) / "config.yaml")),
            read_metrics(open_path(folder) / "metrics.jsonl"),
        )
        for name, folder in zip(_short_names(folders), folders, strict=True)
    ]


def _short_names(folders: Sequence[str]) -> list[str]:
    """Returns the last parts of the paths: as many as tell the runs apart."""
    parts = [absolute_path(folder).parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return list(folders)
