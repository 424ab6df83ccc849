"""Rows that cannot be used stop the run or are counted, alone or among those encoded with them."""

from pathlib import Path

import pytest

from jaxllm.errors import UserError
from jaxllm.train.data.files import BadRows, Row


def rows_of(values):
    return [Row(Path("f"), "row", i, value, int) for i, value in enumerate(values, start=1)]


def doubled(batch):
    if 3 in batch:
        raise UserError("three")
    return [2 * each for each in batch]


def test_what_cannot_be_parsed_or_encoded_is_left_out(caplog):
    bad = BadRows("skip")
    parsed = bad.parsed(rows_of(["1", "x", "2", "3", "4", "5"]), lambda value: value)
    assert [(row.number, made) for row, made in bad.encoded(parsed, doubled, 2)] == [
        *[(1, 2), (3, 4), (5, 8), (6, 10)]
    ]
    assert (bad.rows, bad.skipped) == (6, 2)
    bad.report()
    assert "skipped 2 of 6 rows; the first: f, row 2: " in caplog.text


@pytest.mark.parametrize(("values", "place"), [(["1", "x"], "f, row 2"), (["1", "3"], "f, row 2")])
def test_or_the_first_stops_the_run(values, place):
    bad = BadRows()
    parsed = bad.parsed(rows_of(values), lambda value: value)
    with pytest.raises(UserError, match=f"{place}: .*; data.bad_rows=skip leaves such rows out"):
        list(bad.encoded(parsed, doubled, 5))


def test_nothing_is_logged_where_nothing_was_left_out(caplog):
    bad = BadRows("skip")
    assert len(list(bad.parsed(rows_of(["1"]), lambda value: value))) == 1
    bad.report()
    assert caplog.text == ""
