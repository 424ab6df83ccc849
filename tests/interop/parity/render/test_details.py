"""Tables of the rows of one level."""

import pytest
from parity_reports import NAN, tap

from jaxllm.interop.parity.render.details import (
    SHOWN,
    config_table,
    generation_table,
    level_table,
    losses_table,
    tensors_table,
    weights_table,
    wrong_activations_table,
)
from jaxllm.interop.parity.report.activation_rows import Error
from jaxllm.interop.parity.report.rows import (
    FieldResult,
    LossResult,
    ScoresResult,
    TensorResult,
    TextResult,
    WeightResult,
)


def gradient(error, index=0):
    return TensorResult(f"layers.{index}", "kernel", "gradient", error, 1e-7, 1e-6)


def test_the_table_of_a_level_depends_on_the_kind_of_its_rows():
    fields = (FieldResult("config.a", "1", "2"),)
    assert level_table(fields) == config_table(fields)
    assert level_table([gradient(1.0)]) == tensors_table([gradient(1.0)])
    assert level_table(()).rows == ()


def test_rows_of_an_unknown_kind_get_a_generic_table():
    class Sum(FieldResult):
        """A kind of row without a table of its own."""

    table = level_table([Sum("totals.a", "1", "1"), Sum("totals.b", "1", "2")])
    assert [row.cells for row in table.rows] == [("totals.b", "1.0", "0", "0")]
    assert table.columns[0] == "row"


def test_equal_fields_are_left_out():
    fields = (FieldResult("config.a", "1", "1"), FieldResult("config.b", "1", "2"))
    assert [row.cells for row in config_table(fields).rows] == [("config.b", "1", "2")]


def test_weights_show_how_many_bits_differ():
    weights = [WeightResult("embed", "embedding", ("wte",), 64, bits, "why") for bits in (0, 1500)]
    assert [row.cells for row in weights_table(weights).rows] == [
        ("embed.embedding", "why", "1,500", "64")
    ]


def test_activations_that_only_propagate_an_error_are_left_out():
    passed_on, wrong = tap("layers.0", 1.5e-6), tap("layers.1", 1.0)
    assert [row.cells[:2] for row in wrong_activations_table((passed_on, wrong)).rows] == [
        ("layers.1", "0.50")
    ]


@pytest.mark.parametrize("bad", [1.0, NAN])
def test_failures_come_first_and_then_the_rows_closest_to_failing(bad):
    table = tensors_table([gradient(9e-7), gradient(bad, 1), gradient(8e-7, 2)])
    assert [row.cells[0] for row in table.rows] == [
        *("layers.1.kernel", "layers.0.kernel", "layers.2.kernel"),
    ]
    assert [row.ok for row in table.rows] == [False, True, True]


@pytest.mark.parametrize(("failures", "omitted"), [(3, 0), (SHOWN, 0), (SHOWN + 5, 5)])
def test_omitted_failures_are_counted(failures, omitted):
    table = tensors_table([gradient(1.0, i) for i in range(failures)] + [gradient(0.0)] * SHOWN)
    assert len(table.rows) == SHOWN
    assert table.num_omitted == omitted


def test_losses_show_both_sides_and_float64():
    [row] = losses_table([LossResult("step 0", 2.0, 4.5, 4.0, 1e-7, 1e-6)]).rows
    losses = ("2.000000", "4.500000", "4.000000")
    assert row.cells == ("step 0", *losses, "0.50", "1.0e-07", "1.0e-06")
    assert not row.ok


def test_generation_counts_equal_tokens():
    table = generation_table(
        [
            TextResult("generate.greedy", 5, (1, 2, 3), (1, 2, 4)),
            TextResult("generate.beams", 5, (1, 2), (1, 3), is_tie=True),
            TextResult("generate.greedy", 9, (1, 2), (1, 3), is_tie=True, is_confirmed=True),
            ScoresResult("generate.filtered", Error(1e-7, 1e-7, 1e-6), unexplained=2),
        ]
    )
    assert [row.cells for row in table.rows] == [
        ("greedy", "prompt of 5 tokens", "2 of 3 tokens equal"),
        (
            *("beams", "prompt of 5 tokens"),
            "1 of 2 tokens equal; the two diverge at a tie, the rest is unknown",
        ),
        (
            *("greedy", "prompt of 9 tokens"),
            "1 of 2 tokens equal; the two diverge at a tie, the reference agrees with the rest",
        ),
        (
            *("filtered", "logits of every token"),
            "relative L2 1.0e-07, threshold 1.0e-06; 2 tokens kept by one side alone",
        ),
    ]
    assert [row.ok for row in table.rows] == [False, True, True, False]
