"""A row says where it is and what is wrong with it, in one line."""

from pathlib import Path

from jaxllm.train.data.files.row import Row, same, unreadable


def test_places_and_excerpts():
    row = Row(Path("a.jsonl"), "line", 1_000_001, b"x" * 200, same)
    assert str(row.explain(ValueError("bad\nthing"))) == (
        f"a.jsonl, line 1,000,001: bad; found {b'x' * 80!r}"
    )
    assert str(Row(Path("a.txt"), "", 1, {}, same).explain(KeyError("k"))) == "a.txt: 'k'"
    text = str(unreadable(Path("a"), "a list", ValueError("x\ny")))
    assert text == "a: this is not a list, or it is damaged: x"
