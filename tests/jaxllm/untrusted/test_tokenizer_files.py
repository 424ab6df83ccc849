"""Tokenizers that multiply texts or do not end in time are refused, with the file named."""

import json

import pytest

from jaxllm.errors import UserError
from jaxllm.untrusted import tokenizer_files
from jaxllm.untrusted.tokenizer_files import decode, encode, read_tokenizer

MODEL = {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "b": 1, "</s>": 2}}


def write(tmp_path, **parts):
    """Writes a `tokenizer.json` with these parts and returns its path."""
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "decoder"))
    whole = {"version": "1.0", **empty, "post_processor": None, "added_tokens": [], "model": MODEL}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**whole, **parts}))
    return tmp_path / "tokenizer.json"


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(expression):
    pattern = {"Regex": expression}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def sequence(kind, *steps):
    return {"type": "Sequence", kind: list(steps)}


DOUBLE = replace({"String": "a"}, "aa")
TEMPLATE = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}


def test_usual_tokenizers_are_read(tmp_path):
    normalizer = sequence(
        "normalizers", {"type": "NFKC"}, replace({"String": " "}, "▁"), {"type": "Lowercase"}
    )
    file = write(tmp_path, normalizer=normalizer, pre_tokenizer=split(r"\s+(?!\S)|\p{L}+"))
    tokenizer = read_tokenizer(file)
    assert encode(tokenizer, "B a", file, special=False).ids == [1, 0, 0]
    assert decode(tokenizer, [1, 2], file) == "b </s>"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"normalizer": sequence("normalizers", *[DOUBLE] * 30)}, "normalizer may make more than"),
        ({"normalizer": replace({"Regex": "."}, "a" * 500)}, "normalizer may make more than"),
        ({"normalizer": replace({"String": ""}, "a" * 500)}, "normalizer may make more than"),
        (
            {
                "normalizer": sequence(
                    "normalizers", *[{"type": "Prepend", "prepend": "a" * 99}] * 200
                )
            },
            "normalizer adds 19800 characters",
        ),
        ({"decoder": sequence("decoders", *[DOUBLE] * 30)}, "decoder may make more than"),
        (
            {
                "post_processor": {
                    **TEMPLATE,
                    "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 999,
                }
            },
            "post_processor may make more than",
        ),
        (
            {
                "model": {
                    **MODEL,
                    "type": "WordPiece",
                    "continuing_subword_prefix": "",
                    "max_input_chars_per_word": 10**9,
                }
            },
            "max_input_chars_per_word is 1000000000",
        ),
        ({"pre_tokenizer": split("(")}, "is not a tokenizer.json"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "is not a tok"),
        ({"model": {**MODEL, "vocab": {"a": -1}}}, "is not a tokenizer.json"),
        ({"model": [1]}, "is not a tokenizer.json"),
    ],
)
def test_others_are_refused(tmp_path, parts, message):
    with pytest.raises(UserError, match=rf"tokenizer\.json.*{message}|{message}"):
        read_tokenizer(write(tmp_path, **parts))


def test_a_panic_of_the_library_is_an_error(tmp_path):
    """Its regular expressions give up after some million attempts, and it then panics."""
    file = write(tmp_path, pre_tokenizer=split("(a+)+$"))
    tokenizer = read_tokenizer(file)
    with pytest.raises(UserError, match=r"tokenizer\.json fails for a text of 51 characters"):
        encode(tokenizer, "a" * 50 + "b", file, special=True)


def test_a_call_that_does_not_end_in_time_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_files, "SECONDS", 0.05)
    file = write(tmp_path, pre_tokenizer=split("(?:a*a*c)|b"))
    tokenizer = read_tokenizer(file)
    with pytest.raises(UserError, match=r"tokenizer\.json has taken more than 0 s for a text"):
        encode(tokenizer, "a" * 1000 + "b", file, special=True)
