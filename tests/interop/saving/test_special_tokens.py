"""Exports say which tokens begin, end and pad texts, or that nothing tells."""

import base64
import dataclasses
import json
from pathlib import Path

import pytest
import transformers
from tiny import random_model

from jaxllm.checkpoint_origin import Origin
from jaxllm.interop import load_pretrained, save_pretrained
from jaxllm.interop.saving.special_tokens import NAMES, find_special_tokens

ADDED = [{"id": 90, "content": "<s>"}, {"id": 91, "content": "</s>"}, {"id": 92, "content": "<p>"}]
BYTE_VOCABULARY = {"model": {"vocab": {"a": 0, "</s>": 4}}, "added_tokens": []}
UNIGRAM = {"model": {"vocab": [["<pad>", 0.0], ["</s>", 0.0], ["a", -2.0]]}}
RANKS = b"".join(base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(40))


def varint(value: int) -> bytes:
    value, out = value & ((1 << 64) - 1), b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def sentencepiece_model(**ids: int) -> bytes:
    """Returns a model file: pieces (field 1) and the trainer's settings (field 2)."""
    numbers = {"unk": 40, "bos": 41, "eos": 42, "pad": 43}
    spec = b"".join(varint(numbers[name] << 3) + varint(value) for name, value in ids.items())
    piece = b"\x0a\x01a\x15\x00\x00\x80\xbf"  # a text, and a float of four bytes
    pieces = (b"\x0a" + varint(len(piece)) + piece) * 3
    return pieces + b"\x12" + varint(len(spec)) + spec


def origin_with(folder: Path, config: object = None, **files: object) -> Origin:
    """An origin with these files; a suffix of `_json` or `_model` stands for a dot."""
    for name, content in files.items():
        stem, _, suffix = name.rpartition("_")
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / f"{stem}.{suffix}").write_bytes(data)
    text = json.dumps(config or {})
    return Origin(family="meta-llama", config=text, layout="{}", directory=str(folder))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, {}),
        ({"config": {"bos_token_id": 3, "eos_token_id": [4, 5]}}, (3, [4, 5], None)),
        ({"config": {"eos_token_id": 7}, "generation_config_json": {"eos_token_id": 8}}, (None, 7)),
        ({"generation_config_json": {"pad_token_id": 0}}, (None, None, 0)),
        (
            {
                "tokenizer_json": {"added_tokens": ADDED},
                "tokenizer_config_json": {"bos_token": "<s>", "eos_token": {"content": "</s>"}},
                "special_tokens_map_json": {"pad_token": "<p>", "eos_token": "<s>"},
            },
            (90, 91, 92),
        ),
        (
            {
                "tokenizer_json": BYTE_VOCABULARY,
                "tokenizer_config_json": {"bos_token": "<none>", "eos_token": "</s>"},
            },
            (None, 4),
        ),
        (
            {
                "tokenizer_json": UNIGRAM,
                "tokenizer_config_json": {"eos_token": "</s>", "pad_token": "<pad>"},
            },
            (None, 1, 0),
        ),
        (
            {
                "tokenizer_config_json": {
                    "eos_token": "</s>",
                    "added_tokens_decoder": {"17": {"content": "</s>"}},
                }
            },
            (None, 17),
        ),
        ({"tokenizer_model": RANKS}, (40, 41)),
        ({"tokenizer_model": sentencepiece_model(unk=0)}, (1, 2)),
        ({"tokenizer_model": sentencepiece_model(bos=-1, eos=5, pad=6)}, (None, 5, 6)),
        ({"tokenizer_model": b"no model"}, {}),
        ({"tokenizer_json": [1], "tokenizer_config_json": {"eos_token": "</s>"}}, {}),
        ({"tokenizer_json": {"model": 3, "added_tokens": [7]}}, {}),
        ({"config": {"eos_token_id": 96, "bos_token_id": True, "pad_token_id": -1}}, {}),
    ],
    ids=str,
)
def test_the_first_file_that_gives_an_id_decides(files, expected, tmp_path):
    found = find_special_tokens(origin_with(tmp_path, **files), vocab_size=96)
    wanted = dict(zip(NAMES, expected, strict=False)) if expected else {}
    assert found == {name: value for name, value in wanted.items() if value is not None}


def ids_in(folder: Path) -> list[object]:
    config = transformers.AutoConfig.from_pretrained(folder)
    generation = transformers.GenerationConfig.from_pretrained(folder)
    assert [getattr(config, n) for n in NAMES] == [getattr(generation, n) for n in NAMES]
    return [getattr(config, name) for name in NAMES]


def test_an_export_of_another_format_says_the_ids_of_its_tokenizer(tmp_path):
    save_pretrained(random_model(head_dim=8), tmp_path / "meta", format="meta")
    (tmp_path / "meta" / "tokenizer.model").write_bytes(RANKS)
    save_pretrained(load_pretrained(tmp_path / "meta"), tmp_path / "hf", format="hf")
    assert ids_in(tmp_path / "hf") == [40, 41, None]


def test_a_new_model_says_that_nothing_tells(tmp_path):
    """transformers would take Llama's 1 and 2, which are bytes here."""
    save_pretrained(random_model(head_dim=8), tmp_path / "hf")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "hf")
    assert [getattr(config, name) for name in NAMES] == [None, None, None]
    assert not (tmp_path / "hf" / "generation_config.json").exists()


def test_a_config_of_the_same_family_stays_as_it_is(tmp_path):
    save_pretrained(random_model(head_dim=8), tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    fields = {n: v for n, v in json.loads(path.read_text()).items() if n not in NAMES}
    path.write_text(json.dumps(fields | {"eos_token_id": [5, 6]}))
    model = load_pretrained(tmp_path / "hf")
    save_pretrained(model, tmp_path / "same")
    again = json.loads((tmp_path / "same" / "config.json").read_text())
    assert (again["eos_token_id"], "bos_token_id" in again) == ([5, 6], False)
    assert not (tmp_path / "same" / "generation_config.json").exists()
    model.origin = dataclasses.replace(model.origin, family="tlama")
    save_pretrained(model, tmp_path / "other", format="hf")
    assert ids_in(tmp_path / "other") == [None, [5, 6], None]
