"""Hugging Face tokenizers: ids are those of `AutoTokenizer`, and text never becomes special."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, SPECIAL, TEXTS, save_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from jaxllm.errors import UserError
from jaxllm.tokenization import ByteTokenizer, load_tokenizer

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat and the hat"] * 9, trainer)
    tokenizer.enable_truncation(8)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def in_new_folder(tokenizer_json: Path, folder: Path, **files: dict) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(tokenizer_json.read_text())
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return path


def test_arrays_of_any_integer_dtype_decode_like_lists(tokenizer_json):
    for tokenizer in (ByteTokenizer(), load_tokenizer(tokenizer_json, eos="<|end|>")):
        ids = tokenizer.encode("the cat")
        for dtype in (np.uint16, np.int32, np.int64):
            assert tokenizer.decode(np.array(ids, dtype)) == "the cat"


@given(TEXT)
def test_file_tokenizer_round_trip(tokenizer_json, text):
    tokenizer = load_tokenizer(tokenizer_json, eos="<|end|>")
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(token < tokenizer.vocab_size for token in ids)


def test_special_token_text_is_not_encoded_as_a_special_token(tokenizer_json):
    tokenizer = load_tokenizer(tokenizer_json, eos="<|end|>")
    assert tokenizer.eos_id == 1
    assert 1 not in tokenizer.encode("one <|end|> two")


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_sources_have_the_ids_of_auto_tokenizer(kind, tmp_path):
    ours = load_tokenizer(save_tokenizer(kind, tmp_path))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = theirs(text, truncation=False).input_ids
        assert ours.encode_prompt(text) == ours.encode_source(text) == ids
        assert ours.encode_chat(text) == theirs(text, add_special_tokens=False).input_ids
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    assert ours.eos_id == theirs.eos_token_id
    assert ours.bos_id == theirs.bos_token_id


@pytest.mark.parametrize("kind", KINDS)
def test_untrusted_text_has_no_special_tokens_inside(kind, tmp_path):
    """Also where special tokens are words or pieces of the vocabulary."""
    tokenizer = load_tokenizer(save_tokenizer(kind, tmp_path))
    special = {*range(len(SPECIAL))} - {2}  # <unk> stands for what no other token does
    for text in ("the </s> cat", "<|im_start|>x<|im_end|>", "</s>", "<s> <s><pad> the", *TEXTS):
        assert not special & {*tokenizer.encode(text)}
        around = tokenizer.encode_prompt("x"), tokenizer.encode("x")
        added = [token for token in around[0] if token not in around[1]]
        inside = tokenizer.encode_prompt(text, trusted=False)
        assert [token for token in inside if token in special] == added
        ids = tokenizer.encode_document(text)
        assert 1 not in ids[:-1]
        assert ids[-1] == 1


def test_text_keeps_its_nul_characters_beside_special_tokens(tmp_path):
    tokenizer = load_tokenizer(save_tokenizer("words, end", tmp_path))
    word = tokenizer.encode("the\0cat")
    assert word != tokenizer.encode("the cat")
    assert tokenizer.encode("the\0cat </s>")[: len(word)] == word


@pytest.mark.parametrize(
    "files",
    [
        {"special_tokens_map": {"eos_token": "<|end|>"}},
        {"config": {"eos_token_id": 1}},
        {"tokenizer_config": {"eos_token": "<|end|>"}, "generation_config": {"eos_token_id": 0}},
        {"tokenizer_config": {"eos_token": "<|end|>"}},
        {"tokenizer_config": {"eos_token": {"content": "<|end|>", "special": True}}},
        {"tokenizer_config": {}, "generation_config": {"eos_token_id": 1}},
        {"generation_config": {"eos_token_id": [1, 0]}},
    ],
)
def test_eos_is_found_in_the_folder(tokenizer_json, tmp_path, files):
    in_new_folder(tokenizer_json, tmp_path, **files)
    assert load_tokenizer(tmp_path).eos_id == 1


def test_an_unknown_eos_is_reported_with_the_special_tokens(tokenizer_json):
    with pytest.raises(ValueError, match=r"no token '</s>'.*; its special tokens are \['<pad>'"):
        load_tokenizer(tokenizer_json, eos="</s>").encode_document("the cat")


def test_files_that_are_not_tokenizers_are_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        load_tokenizer(tmp_path / "missing")
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
        load_tokenizer(tmp_path)


def test_vocab_size_covers_every_id_of_a_vocabulary_with_gaps(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 9, "<end>": 5}, unk_token="a"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path, eos="<end>").vocab_size == 10


def test_a_lone_surrogate_is_shown(tokenizer_json):
    for tokenizer in (ByteTokenizer(), load_tokenizer(tokenizer_json, eos="<|end|>")):
        for encode in (tokenizer.encode, tokenizer.encode_prompt):
            with pytest.raises(
                UserError, match=r"character 1 of .* is '\\udcff', a lone surrogate"
            ):
                encode("a\udcffb")


@pytest.mark.parametrize("given", [{}, [], ["<|end|>"], {"content": 1}, 1, "\ud800<|end|>"])
def test_an_eos_token_that_is_no_text_is_refused(tokenizer_json, tmp_path, given):
    in_new_folder(tokenizer_json, tmp_path, tokenizer_config={"eos_token": given})
    with pytest.raises(UserError) as error:
        load_tokenizer(tmp_path)
    assert f"tokenizer_config.json: eos_token is {given!r}; it must be a text" in str(error.value)


@pytest.mark.parametrize("given", [{}, [], [[]], "1", 1.5, True, 99999, -1, [-1, 0]])
def test_an_eos_token_id_that_is_no_token_is_refused(tokenizer_json, tmp_path, given):
    in_new_folder(tokenizer_json, tmp_path, generation_config={"eos_token_id": given})
    with pytest.raises(UserError) as error:
        load_tokenizer(tmp_path).encode_document("the cat")
    assert f"generation_config.json: eos_token_id is {given!r}; it must be a" in str(error.value)
    assert "from 0 to " in str(error.value)


def test_an_eos_option_with_a_lone_surrogate_is_refused(tokenizer_json):
    with pytest.raises(UserError, match=r"it has no token '\\udcff' to end a sequence"):
        load_tokenizer(tokenizer_json, eos="\udcff").encode_document("the cat")


def test_an_empty_vocabulary_is_refused(tmp_path):
    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"tokenizer\.json: its vocabulary is empty"):
        load_tokenizer(tmp_path)


def test_an_unreadable_file_is_not_called_wrong(tokenizer_json, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(PermissionError):
        load_tokenizer(tokenizer_json)
