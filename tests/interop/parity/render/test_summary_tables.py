"""Summary tables of a report."""

import dataclasses

from parity_reports import make_report, with_rows

from jaxllm.interop.parity.render.summary_tables import layers_table, levels_table, positions_table
from jaxllm.interop.parity.report.rows import FieldResult


def test_levels_are_ordered_from_causes_to_effects_and_name_their_failures():
    report = make_report(0.27)
    config = (FieldResult("config.norm_eps", "1e-05", "1e-06"),)
    verdicts = {"logits": False, "layers": False, "config": False}
    table = levels_table(with_rows(dataclasses.replace(report, verdicts=verdicts), config=config))
    assert [row.cells for row in table.rows] == [
        ("✗ config", "1 fields, 1 differ", "config.norm_eps", "", "", ""),
        ("✗ layers", "12 activations, 1 differ", "layers.0.mlp", "0.14", "1.0e-07", "1.0e-06"),
        ("✗ logits", "64 tokens", "lm_head", "0.14", "1.0e-07", "1.0e-06"),
    ]
    assert not any(row.ok for row in table.rows)


def test_a_layer_is_represented_by_its_first_failing_activation():
    table = layers_table(make_report(0.27))
    rows = {row.cells[0]: row for row in table.rows}
    assert list(rows) == ["embed", "layers.0.mlp", "layers.1.attn_norm", "final_norm", "lm_head"]
    assert not rows["layers.0.mlp"].ok
    assert rows["layers.0.mlp"].cells[1:3] == ("0.27", "0.14")
    assert rows["layers.1.attn_norm"].ok


def test_the_last_row_covers_all_positions():
    report = make_report()
    table = positions_table(report, report.logits)
    assert [row.cells[:2] for row in table.rows] == [("0-3", "8"), ("4-31", "56"), ("all", "64")]
    assert table.rows[1].cells[-1] == "90.00%"
