"""The verdict of a report, and the report as JSON."""

import dataclasses
import json

import pytest
from parity_reports import REPORTS, with_rows

from jaxllm.interop.parity.report.report import ReportData


def test_a_report_holds_if_every_level_holds():
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


ERROR = {"relative_l2": 0.0, "reference": 0.0, "outside": None}
ERROR |= {"whole_threshold": None, "is_suspect": False}


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_json_is_valid_and_complete(report):
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    fields = {field.name for field in dataclasses.fields(ReportData)}
    assert data.keys() == fields - {"rows"} | {"ok", "first_divergence", "taps"}
    assert data["ok"] == report.ok
    assert data["tokens"] == 64
    assert [row["path"] for row in data["taps"]] == [row.path for row in report.taps]
    assert data["taps"][0] == {
        "path": "embed",
        "cumulative": {**ERROR, "floor": 3e-7, "threshold": 1.2e-6},
        "max_over_rms": 0.0,
        "forced": {**ERROR, "floor": 1e-7, "threshold": 1e-6},
        "is_output": False,
        "floor": 3e-7,
        "threshold": 1.2e-6,
        "ulp_p50": 0.0,
        "ulp_p99": 0.0,
        "ulp_max": 0.0,
        "hint": None,
        "measured": 0.0,
        "useful": 1e-3,
        "ok": True,
        "verdict": "equal within rounding",
        "reason": "",
    }
    if not report.ok:
        assert data["first_divergence"]["path"] == "layers.0.mlp"


def test_a_level_without_rows_is_an_empty_list():
    data = with_rows(REPORTS["honest"], curve=()).to_json()
    assert data["curve"] == []
    assert "layers" not in data


def test_nonfinite_numbers_become_null():
    data = REPORTS["nan"].to_json()
    assert data["logits"]["relative_l2"] is None
    assert data["first_divergence"]["measured"] is None
