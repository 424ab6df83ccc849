"""Tables: the columns that are read; test_reading has what all formats share."""

import sys

import pyarrow
import pyarrow.parquet
import pytest

from jaxllm.errors import MissingPackageError, UserError
from jaxllm.train.data.files.table_rows import parquet


def test_only_the_columns_of_interest_are_read(tmp_path):
    table = pyarrow.table({"a": [1, 2], "b": ["x", "y"], "c": [None, [1.5]]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    rows = list(parquet(tmp_path / "a.parquet", ("c", "a", "z")))
    assert [row.raw for row in rows] == [{"a": 1, "c": None}, {"a": 2, "c": [1.5]}]
    assert rows[1].place == f"{tmp_path / 'a.parquet'}, row 2"
    with pytest.raises(UserError, match=r"no column is named 'bb' or 'z'; its columns are a, b, c"):
        list(parquet(tmp_path / "a.parquet", ("bb", "z")))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingPackageError, match=r"a\.parquet needs pyarrow.*jaxllm\[data\]"):
        list(parquet(tmp_path / "a.parquet", ()))
