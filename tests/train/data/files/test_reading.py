"""Every format: its rows; and one line that names the file and the row for what is wrong."""

import gzip
import itertools
import json
import tracemalloc

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from array_record.python.array_record_module import ArrayRecordWriter
from tiers import examples

from jaxllm.errors import UserError
from jaxllm.train.data.files import BadRows, read_rows
from jaxllm.train.data.files.finding import ENDS
from jaxllm.train.data.files.reading import FORMATS
from jaxllm.train.data.text import text_of

RECORDS = [{"text": f"text {i} \N{SNOWMAN}", "number": i} for i in range(3000)]


def lines_of(records) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def write_jsonl(path, records):
    path.write_bytes(lines_of(records))


def write_gz(path, records):
    path.write_bytes(gzip.compress(lines_of(records)))


def write_zst(path, records):
    path.write_bytes(zstandard.compress(lines_of(records)))


def write_json(path, records):
    path.write_text(json.dumps(records, indent=1))


def write_parquet(path, records):
    table = pyarrow.Table.from_pylist(records, schema=None if records else pyarrow.schema([]))
    pyarrow.parquet.write_table(table, path, row_group_size=700)


def write_arrow(path, records):
    table = pyarrow.Table.from_pylist(records)
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table, max_chunksize=700)


def write_array_record(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(json.dumps(record).encode())
    writer.close()


WRITERS = {
    "a.jsonl": write_jsonl,
    "a.jsonl.gz": write_gz,
    "a.jsonl.zst": write_zst,
    "a.json": write_json,
    "a.parquet": write_parquet,
    "a.arrow": write_arrow,
    "a.array_record": write_array_record,
}


def texts_in(path, policy="stop") -> list[str]:
    rows = BadRows(policy)
    found = rows.parsed(read_rows([str(path)], ("text",)), lambda record: text_of(record, "text"))
    texts = [text for _, text in found]
    rows.report()
    return texts


def message_of(path) -> str:
    with pytest.raises(UserError) as error:
        texts_in(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_format_has_a_case():
    assert {name[1:] for name in WRITERS} | {".txt", ".arrayrecord"} == {*FORMATS}
    assert {*ENDS} == {*FORMATS}


@pytest.mark.parametrize("name", WRITERS)
def test_rows_come_in_order(name, tmp_path):
    WRITERS[name](tmp_path / name, RECORDS)
    assert texts_in(tmp_path / name) == [record["text"] for record in RECORDS]


@pytest.mark.parametrize("name", WRITERS)
def test_a_wrong_file_is_named(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"this is something else, and long enough to be anything" * 9)
    assert message_of(path).startswith(f"{path}")
    if "jsonl" not in name:
        assert f"{path}: this is not a" in message_of(path)


@pytest.mark.parametrize("name", examples([*WRITERS], "a.jsonl.gz", "a.parquet"))
def test_a_file_that_is_cut_short_is_named(name, tmp_path):
    path = tmp_path / name
    WRITERS[name](path, RECORDS)
    path.write_bytes(path.read_bytes()[:-50])
    assert message_of(path).startswith(f"{path}")


@pytest.mark.parametrize("name", ["a.txt", *WRITERS])
def test_an_empty_file_is_named(name, tmp_path):
    path = tmp_path / name
    if name in ("a.txt", "a.arrow"):
        path.write_bytes(b"")
    else:
        WRITERS[name](path, [])
    if name == "a.parquet":
        empty = pyarrow.table({"text": pyarrow.array([], pyarrow.string())})
        pyarrow.parquet.write_table(empty, path)
    assert message_of(path).startswith(f"{path}: this ")
    assert "empty" in message_of(path) or name == "a.arrow"


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_column_is_named(name, tmp_path):
    path = tmp_path / name
    WRITERS[name](path, [{"txt": "x", "id": 1}])
    message = message_of(path)
    assert message.startswith(f"{path}")
    assert "'text'" in message
    assert "txt" in message


@pytest.mark.parametrize("name", WRITERS)
def test_one_bad_row_among_many_is_named_or_left_out(name, tmp_path, caplog):
    path, records = tmp_path / name, list(RECORDS)
    records[2100] = {"text": None, "number": 0}
    WRITERS[name](path, records)
    unit = {"a.json": "item", "a.parquet": "row", "a.arrow": "row", "a.array_record": "record"}
    place = f"{path}, {unit.get(name, 'line')} 2,101"
    assert message_of(path).startswith(f"{place}: 'text' is null, not a text")
    assert "data.bad_rows=skip" in message_of(path)
    expected = [record["text"] for record in records if record["text"] is not None]
    assert texts_in(path, "skip") == expected
    assert f"skipped 1 of 3,000 rows; the first: {place}: " in caplog.text


@pytest.mark.parametrize("name", ["a.jsonl", "a.array_record"])
def test_one_row_that_is_no_json_is_named_or_left_out(name, tmp_path):
    path = tmp_path / name
    if name == "a.jsonl":
        path.write_bytes(lines_of(RECORDS[:5]) + b'{"text": \n\n' + lines_of(RECORDS[5:9]))
    else:
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for record in (*map(json.dumps, RECORDS[:5]), "{", *map(json.dumps, RECORDS[5:9])):
            writer.write(record.encode())
        writer.close()
    assert message_of(path).startswith(f"{path}, ")
    assert texts_in(path, "skip") == [record["text"] for record in RECORDS[:9]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "x"}', "begins with no list"),
        ('[{"text": "x"} {"text": "y"}]', "item 1 is no JSON: '{' follows it"),
        ('[{"text": "x"},', "item 2 is no JSON"),
        ('[{"text": "x"}', "item 1 is no JSON: the list does not end"),
        ('[{"text": "x"},]', "item 2 is no JSON"),
        ("[" * 100_000, "this is not a .json file with a list"),
    ],
    ids=range(6),
)
def test_a_damaged_list_is_named(content, message, tmp_path):
    (tmp_path / "a.json").write_text(content)
    assert message in message_of(tmp_path / "a.json")


@pytest.mark.parametrize("spaces", ["", " \n"])
def test_a_list_is_read_in_parts(spaces, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxllm.train.data.files.text_rows.CHUNK", 7)
    items = f"{spaces},{spaces}".join(json.dumps(record) for record in RECORDS[:50])
    (tmp_path / "a.json").write_text(f"{spaces}[{spaces}{items}{spaces}]{spaces}")
    assert texts_in(tmp_path / "a.json") == [record["text"] for record in RECORDS[:50]]


def test_a_folder_of_the_package_datasets(tmp_path):
    saved = datasets.Dataset.from_list(RECORDS)
    saved.save_to_disk(tmp_path / "one", num_shards=3)
    assert texts_in(tmp_path / "one") == [record["text"] for record in RECORDS]
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(tmp_path / "two")
    assert len(texts_in(tmp_path / "two" / "test")) == 3000
    assert "the splits train, test; give one" in message_of(tmp_path / "two")


@pytest.mark.parametrize("name", examples([*WRITERS], "a.parquet"))
def test_a_few_rows_are_in_memory_at_a_time(name, tmp_path):
    """Python's memory; pyarrow has its own, of a batch."""
    records = [{"text": "x" * 2000, "number": i} for i in range(10_000)]
    WRITERS[name](tmp_path / name, records)
    rows = read_rows([str(tmp_path / name)], ("text",))
    next(rows)
    tracemalloc.start()
    for _ in itertools.islice(rows, 9000):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10e6  # of 20e6 in all
