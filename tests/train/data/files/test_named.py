"""Datasets by name: their rows, and names that are not understood."""

import json
import sys

import pytest
from tiny import random_model

from jaxllm.errors import MissingPackageError, UserError
from jaxllm.train.data.documents import DataConfig
from jaxllm.train.data.files.finding import find_files
from jaxllm.train.data.files.named import named_rows


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A dataset with two splits, as they lie on the hub, and a cache of its own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    for split, count in (("train", 30), ("test", 2)):
        rows = [json.dumps({"text": f"{split} {n}", "label": n}) for n in range(count)]
        (tmp_path / "set" / f"{split}.jsonl").write_text("\n".join(rows))
    return tmp_path / "set"


def test_rows_are_those_of_a_split(folder):
    rows = list(named_rows(f"datasets://{folder}:test", ("text",)))
    assert [row.parse(row.raw) for row in rows] == [{"text": "test 0"}, {"text": "test 1"}]
    assert rows[1].place.endswith("set:test, row 2")
    assert len(list(named_rows(f"datasets://{folder}", ("text",)))) == 30


def test_a_run_trains_on_them(folder):
    data = DataConfig(text=(f"datasets://{folder}:train",), held_out=0, packing="padded")
    rows = data.load(random_model(vocab_size=256), 16).train
    assert len(rows) == 30


def test_what_is_not_there_is_named(folder, monkeypatch):
    with pytest.raises(UserError, match=r"set:other: this dataset cannot be loaded: .*other"):
        next(named_rows(f"datasets://{folder}:other", ("text",)))
    with pytest.raises(UserError, match=r"no column is named 'tex'; its columns are text, label"):
        next(named_rows(f"datasets://{folder}", ("tex",)))
    with pytest.raises(UserError, match=r"datasets://a names a dataset, which has no files here"):
        find_files(["datasets://a"])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackageError, match="pip install datasets"):
        next(named_rows("datasets://a", ("text",)))
