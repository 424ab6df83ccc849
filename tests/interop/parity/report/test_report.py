"""Reports for machines, for the browser and for the terminal say the same."""

import dataclasses
import io
import json
import re

import pytest
from rich.console import Console

from jaxllm.interop.parity.render.heat_map import MAX_CELL_WIDTH, heat_map
from jaxllm.interop.parity.render.summary import outline
from jaxllm.interop.parity.rendered_report import Report
from jaxllm.interop.parity.report.report import Bucket, LogitsResult
from jaxllm.interop.parity.report.rows import Error, TapResult

NAN = float("nan")


def tap(path: str, relative_l2: float) -> TapResult:
    own = Error(relative_l2 / 2, floor=1e-7, threshold=1e-6)
    return TapResult(path, Error(relative_l2, 3e-7, 1.2e-6), 4 * relative_l2, own)


def make_report(error: float = 4e-7) -> Report:
    logits = LogitsResult(error, 3e-7, 1.2e-6, 1e-5, 2e-5, 1e-12, 1e-11, 1.0, 0)
    steps = ("attn_norm", "attn", "mlp_norm", "mlp")
    layers = [f"layers.{i}{step}" for i in range(2) for step in (*(f".{s}" for s in steps), "")]
    taps = [tap("embed", 0.0), *(tap(path, 3e-7) for path in layers), tap("final_norm", 3e-7)]
    if not logits.ok:
        taps[4] = tap(taps[4].path, error)
    return Report(
        subject="tiny <llama>",
        verdicts={"logits": logits.ok, "layers": logits.ok},
        rows={
            "layers": tuple(taps),
            "logits": (dataclasses.replace(tap("lm_head", error), is_output=True),),
            "gradients": (),
        },
        logits=logits,
        buckets=(Bucket(0, 4, 8, error, 1e-13, 1e-12, 1.0), Bucket(4, 32, 56, error, 0, 0, 0.9)),
        batch_size=2,
        length=32,
        tokens=64,
        seed=7,
        dtypes={"model": "float32"},
        versions={"jax": "0.10.2"},
        tolerance={"noise_factor": 4.0, "least": 1e-6, "most": 1e-3, "most_in_training": 1e-4},
    )


REPORTS = {"honest": make_report(), "broken": make_report(0.27), "nan": make_report(NAN)}


def test_the_verdict_is_that_of_every_level():
    assert REPORTS["honest"].ok
    assert not REPORTS["broken"].ok
    assert not REPORTS["nan"].ok
    one_failed = dataclasses.replace(REPORTS["honest"], verdicts={"logits": True, "layers": False})
    assert not one_failed.ok


def test_the_first_divergence_is_the_first_in_execution_order():
    assert REPORTS["honest"].first_divergence is None
    assert REPORTS["broken"].first_divergence.path == "layers.0.mlp"
    assert REPORTS["broken"].first_divergence.measured == 0.27 / 2
    assert REPORTS["nan"].first_divergence.path == "layers.0.mlp"


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_json_is_valid_and_complete(report):
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    fields = {field.name for field in dataclasses.fields(Report)}
    assert data.keys() == fields - {"rows"} | {"ok", "first_divergence", "taps", "gradients"}
    assert data["gradients"] == []
    assert data["ok"] == report.ok
    assert data["tokens"] == 64
    assert [row["path"] for row in data["taps"]] == [row.path for row in report.taps]
    assert data["taps"][0] == {
        "path": "embed",
        "cumulative": {"relative_l2": 0.0, "floor": 3e-7, "threshold": 1.2e-6},
        "max_over_rms": 0.0,
        "forced": {"relative_l2": 0.0, "floor": 1e-7, "threshold": 1e-6},
        "is_output": False,
        "floor": 3e-7,
        "threshold": 1.2e-6,
        "ulp_p50": 0.0,
        "ulp_p99": 0.0,
        "ulp_max": 0.0,
        "hint": None,
        "measured": 0.0,
        "ok": True,
    }
    if not report.ok:
        assert data["first_divergence"]["path"] == "layers.0.mlp"


def test_numbers_that_are_not_finite_are_null():
    data = REPORTS["nan"].to_json()
    assert data["logits"]["relative_l2"] is None
    assert data["first_divergence"]["measured"] is None


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_the_page_is_one_file_that_asks_for_nothing(report, tmp_path):
    report.write_html(tmp_path / "parity.html")
    page = (tmp_path / "parity.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|<script|<link|<iframe|@import|url\(|\bsrc=|\bhref=", page)
    assert ("Parity holds" in page) == report.ok
    assert ("Parity is broken" in page) != report.ok
    assert "tiny &lt;llama&gt;" in page
    assert all(tap.path in page for tap in report.taps)
    assert "0.10.2" in page
    if not report.ok:
        assert "layers.0.mlp" in page


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_the_table_says_the_verdict(report):
    console = Console(width=90, record=True, file=io.StringIO())
    console.print(report.table())
    text = console.export_text()
    assert ("Parity holds" in text) == report.ok
    assert "layers.1" in text
    assert "4-31" in text
    if not report.ok:
        assert "layers.0.mlp" in text


def test_steps_of_unlike_layers_keep_their_order():
    paths = ("0.norm", "0.up", "0.mlp", "0", "1.norm", "1.router", "1.mlp", "1")
    rows = [tap(f"layers.{path}", 0.0) for path in paths]
    assert outline(rows).steps == ("norm", "router", "up", "mlp", "output")


def test_stacks_are_told_apart():
    paths = [f"{stack}.layers.{i}.attn" for stack in ("encoder", "decoder") for i in range(2)]
    page = heat_map(
        dataclasses.replace(make_report(), rows={"layers": tuple(tap(p, 3e-7) for p in paths)})
    )
    places = dict(re.findall(r'<text x="([\d.]+)"[^>]*>(encoder|decoder)</text>', page))
    assert list(places.values()) == ["encoder", "decoder"]
    first, second = (float(x) for x in places)
    assert second - first == 2 * MAX_CELL_WIDTH
    assert "coder" not in heat_map(make_report())
