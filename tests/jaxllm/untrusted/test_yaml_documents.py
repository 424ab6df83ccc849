"""YAML documents are of bounded size, however often aliases repeat their parts."""

import pytest

from jaxllm.untrusted.yaml_documents import MAX_BYTES, DocumentError, parse_yaml


def repeated(levels: int, times: int, merge: str = "") -> str:
    """Returns a document of a few lines whose aliases stand for `times ** levels` values."""
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, levels):
        aliases = ", ".join([f"*a{level - 1}"] * times)
        value = f"{{<<: [{aliases}]}}" if merge else f"[{aliases}]"
        lines.append(f"a{level}: &a{level} {value}")
    return "\n".join(lines)


def test_plain_documents_are_parsed():
    text = "a: &a {x: 1, y: [true, 1.5]}\nb: {<<: *a, y: null}\nc: *a\n"
    same = {"x": 1, "y": [True, 1.5]}
    assert parse_yaml(text) == {"a": same, "b": {"x": 1, "y": None}, "c": same}
    assert parse_yaml("") is None


def test_texts_may_have_line_breaks_and_bytes_of_names():
    assert parse_yaml(r'{a: "b\nc", d: "e\udcff"}') == {"a": "b\nc", "d": "e\udcff"}


@pytest.mark.parametrize("merge", ["", "<<"])
@pytest.mark.parametrize(("levels", "times"), [(24, 2), (9, 9)])
def test_aliases_count_as_often_as_they_repeat_a_value(levels, times, merge):
    with pytest.raises(DocumentError, match="more than 100,000 values"):
        parse_yaml(repeated(levels, times, merge))
    assert parse_yaml(repeated(3, times, merge))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]", "a contains itself"),
        ("&a {b: [*a]}", "a contains itself"),
        ("[" * 60_000, "nested more than 100 levels deep"),
        ("- " * 30_000, "nested more than 100 levels deep"),
        ("a: 0x" + "f" * 60_000, "60002 characters without quotes"),
        ("a: " + "1:" * 20_000 + "1", "40001 characters without quotes"),
        ("a: " + "x" * MAX_BYTES, f"at most {MAX_BYTES} are read"),
        ("a: '" + "é" * (MAX_BYTES // 2) + "'", f"{MAX_BYTES + 5} bytes; at most {MAX_BYTES} are"),
        ("a: 1\nb: {a: 1, a: 2}", "'a' occurs more than once"),
        ("a: !!python/object:os.system x", "invalid YAML: could not determine a constructor"),
        ("a: 2020-13-45", "invalid YAML: month must be in"),
        ("a: *b", "invalid YAML: found undefined alias 'b'"),
        (r'a: "b\ud800"', r"'\\ud800' in 'b\\ud800' is not a character of a text"),
        (r'"a\0": 1', r"'\\x00' in 'a\\x00' is not a character of a text"),
        ("a: [1", "invalid YAML: while parsing a flow sequence"),
    ],
)
def test_other_documents_are_refused(text, message):
    with pytest.raises(DocumentError, match=message):
        parse_yaml(text)
