"""Tokenizers in other files: read by transformers with its ids, or refused with what to install."""

import importlib.util
import json
import sys

import pytest
import transformers
from tokenizer_kinds import TEXTS
from transformers.convert_slow_tokenizer import import_protobuf

from jaxllm.errors import MissingPackageError, UserError
from jaxllm.tokenization import find_tokenizer, load_tokenizer

PIECES = ["<unk>", "<s>", "</s>", "\u2581", "\u2581the", "\u2581c", "at", "h", "e", "a", "t", "x"]
LLAMA = {"model_type": "llama", "vocab_size": 96}


def write_sentencepiece(folder, name: str, *, kind: int, pieces: list[str]) -> None:
    """Writes a SentencePiece model: kind 1 is Unigram, 2 is BPE."""
    proto = import_protobuf().ModelProto()
    proto.trainer_spec.model_type = kind
    for i, piece in enumerate(pieces):
        role = {"<unk>": 2, "<s>": 3, "</s>": 3, "<pad>": 3}.get(piece, 1)
        proto.pieces.add(piece=piece, score=0.0 if role > 1 else -float(i), type=role)
    folder.mkdir()
    (folder / name).write_bytes(proto.SerializeToString())


@pytest.fixture
def folders(tmp_path):
    llama, t5, byt5 = (tmp_path / name for name in ("llama", "t5", "byt5"))
    write_sentencepiece(llama, "tokenizer.model", kind=2, pieces=PIECES)
    write_sentencepiece(t5, "spiece.model", kind=1, pieces=["<pad>", "</s>", "<unk>", *PIECES[3:]])
    byt5.mkdir()
    transformers.ByT5Tokenizer().save_pretrained(byt5)
    for folder, kind in ((llama, LLAMA), (t5, {"model_type": "t5"}), (byt5, {"model_type": "t5"})):
        (folder / "config.json").write_text(json.dumps(kind))
    return llama, t5, byt5


def test_ids_are_those_of_auto_tokenizer(folders):
    for folder in folders:
        assert find_tokenizer([folder]) == folder
        assert not (folder / "tokenizer.json").exists()
        ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
        for text in TEXTS:
            assert ours.encode_prompt(text) == theirs(text).input_ids, (folder.name, text)
        assert ours.encode_prompt("the cat") != [*b"the cat"]
        assert ours.eos_id == theirs.eos_token_id
        document = ours.encode_document("the cat")
        assert document[-1] == ours.eos_id
        assert ours.eos_id not in document[:-1]
        assert ours.decode(document) == theirs.decode(document)
    assert load_tokenizer(folders[2]).eos_id == 1


def test_an_untrusted_text_has_no_special_token_of_a_python_tokenizer(folders):
    tokenizer = load_tokenizer(folders[2])
    assert 1 in tokenizer.encode_prompt("a </s> b")[:-1]
    assert 1 not in tokenizer.encode_prompt("a </s> b", trusted=False)[:-1]
    assert 1 not in tokenizer.encode("a </s> b")


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json", "spiece.model", "x.tiktoken"])
def test_files_that_transformers_cannot_use_are_refused(name, tmp_path):
    """Also if its class would make up a vocabulary because it reads other files."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / name).write_text("{}")
    with pytest.raises(
        UserError, match=rf"transformers cannot read its {name}: .* tokenizer\.json"
    ):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "package"),
    [
        ("tokenizer.model", b"\n\x05\n\x03abc", "sentencepiece"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", "tiktoken"),
        ("qwen.tiktoken", b"IQ== 0\n", "tiktoken"),
        ("tekken.json", b"{}", "mistral-common"),
    ],
)
def test_a_missing_package_is_named(name, content, package, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=rf"read its {name}, install {package}: pip ins"):
        load_tokenizer(tmp_path)


def test_all_missing_packages_are_named_at_once(tmp_path, monkeypatch):
    (tmp_path / "tekken.json").write_bytes(b"{}")
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x05\n\x03abc")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="pip install mistral-common sentencepiece;"):
        load_tokenizer(tmp_path)


def test_without_transformers_the_message_says_what_to_install(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackageError, match=r"read its tokenizer\.model, install transform"):
        load_tokenizer(folders[0])


def test_code_beside_a_tokenizer_is_not_run(folders):
    (folders[0] / "evil.py").write_text("raise SystemExit('run')")
    config = {"auto_map": {"AutoTokenizer": ["evil.T", None]}, "tokenizer_class": "T"}
    (folders[0] / "tokenizer_config.json").write_text(json.dumps(config))
    (folders[0] / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(UserError):
        load_tokenizer(folders[0])
