"""Document sources."""

import json

import pytest

from jaxllm.train.data.text import cut_text, stdlib_documents, text_documents


def test_the_standard_library_is_read_without_its_tests():
    documents = stdlib_documents()
    assert sum(map(len, documents)) > 5_000_000
    assert documents == stdlib_documents()
    assert not any("\0" in text for text in documents)
    assert not any("class MixinStrUnicodeUserStringTest" in text for text in documents)
    assert not any("build_time_vars" in text[:300] for text in documents)


def test_text_files_are_one_document_each_in_sorted_order(tmp_path):
    for name, text in {"b.txt": "two\r\n", "a.txt": "one", "c[1].txt": "drei ß"}.items():
        (tmp_path / name).write_bytes(text.encode())
    assert text_documents([f"{tmp_path}/*.txt"]) == ["one", "two\r\n", "drei ß"]
    assert text_documents([f"{tmp_path}/c[1].txt"]) == ["drei ß"]
    assert text_documents([f"{tmp_path}/b.txt", f"{tmp_path}/*.txt"])[0] == "two\r\n"
    assert len(text_documents([f"{tmp_path}/b.txt", f"{tmp_path}/*.txt"])) == 3


def test_jsonl_has_one_document_per_line(tmp_path):
    texts = ["one", "line\nbreak", "separator\u2028inside", ""]
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"body": text}, ensure_ascii=False) for text in texts) + "\n\n",
        encoding="utf-8",
    )
    assert text_documents([str(tmp_path / "a.jsonl")], key="body") == texts


@pytest.mark.parametrize(
    "line", [b"{", b"[1]", b'{"body": "x"}', b'{"text": 3}', b'{"text": "\\ud800"}', b"\xff"]
)
def test_an_invalid_line_is_reported_with_its_content(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2: ") as error:
        text_documents([str(path)])
    assert repr(line)[2:-1] in str(error.value)


def test_unreadable_files_are_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file matches '.*nothing\*\.txt'"):
        text_documents([f"{tmp_path}/nothing*.txt"])
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(ValueError, match=r"a\.csv: .* not '\.csv'"):
        text_documents([f"{tmp_path}/a.csv"])
    (tmp_path / "latin.txt").write_bytes("ß".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt: not UTF-8"):
        text_documents([f"{tmp_path}/latin.txt"])


def test_a_single_text_is_cut_near_its_end():
    assert cut_text("0123456789", 0.2) == ("01234567", "89")
    assert cut_text("", 0.2) == ("", "")
