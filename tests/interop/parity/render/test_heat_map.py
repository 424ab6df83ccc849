"""Heat map data."""

import pytest
from parity_reports import NAN, make_report, tap, with_rows

from jaxllm.interop.parity.render.heat_map import Heat, heat, heat_map, legend


def map_of(*paths):
    return heat_map(with_rows(make_report(), layers=tuple(tap(p, 3e-7) for p in paths), logits=()))


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.0, Heat("within", 0)),
        (0.1, Heat("within", 50)),
        (1.0, Heat("within", 100)),
        (1.0001, Heat("beyond", 0)),
        (10.0, Heat("beyond", 50)),
        (1e5, Heat("far", 100)),
        (float("inf"), Heat("far", 100)),
        (NAN, Heat("undefined")),
    ],
)
def test_colors_follow_the_ratio_of_error_and_threshold(ratio, expected):
    assert heat(ratio) == expected


def test_the_legend_labels_every_power_of_ten():
    labels = [label for _, label in legend() if label]
    assert labels == ["0.01", "0.1", "1", "10", "100", "1e3", "1e4"]
    assert all(heat(float(label) * 1.001) in dict(legend()) for label in labels)


def test_a_layer_is_a_column_and_other_modules_are_single_cells():
    found = heat_map(make_report())
    assert found.activations == ("attn_norm", "attn", "mlp_norm", "mlp", "output")
    assert [column.name for column in found.columns] == ["embed", "0", "1", "final_norm", "lm_head"]
    assert [len(column.cells) for column in found.columns] == [1, 5, 5, 1, 1]
    assert all("output" in column.cells for column in found.columns)


def test_only_the_first_divergence_is_framed():
    found = heat_map(make_report(0.27))
    framed = [
        (column.name, name)
        for column in found.columns
        for name, cell in column.cells.items()
        if cell.is_first
    ]
    assert framed == [("0", "mlp")]
    cell = found.columns[1].cells["mlp"]
    assert (cell.error, cell.heat.range, cell.own.range) == ("0.27", "far", "far")
    for text in ("layers.0.mlp", "distance from float64: 0.27", "distance from float64: 0.14"):
        assert text in cell.details
    assert not any(
        c.is_first for column in heat_map(make_report()).columns for c in column.cells.values()
    )


def test_encoder_and_decoder_have_separate_spans():
    paths = [f"{stack}.layers.{i}.attn" for stack in ("encoder", "decoder") for i in range(2)]
    assert map_of("embed", *paths, "lm_head").stacks == (
        *(("", 1), ("encoder", 2), ("decoder", 2), ("", 1)),
    )
    assert heat_map(make_report()).stacks == ()


def test_a_deep_model_shows_colors_and_every_third_layer_number():
    found = map_of("embed", *(f"layers.{i}.attn" for i in range(80)), "lm_head")
    assert not found.has_numbers
    assert [column.name for column in found.columns[:8]] == ["embed", "0", "", "", "3", "", "", "6"]
    assert heat_map(make_report()).has_numbers
