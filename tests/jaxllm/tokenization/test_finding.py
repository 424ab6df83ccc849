"""Which tokenizer belongs to a model, and whether it fits."""

import dataclasses

import pytest
from kinds import CONFIGS
from tiny import TINY
from tokenizer_kinds import save_tokenizer

from jaxllm.errors import MissingFileError, UserError
from jaxllm.tokenization import ByteTokenizer, check_tokens, find_tokenizer, load_tokenizer


def test_bytes_have_a_name_and_are_the_default():
    for name in (None, "bytes"):
        assert isinstance(load_tokenizer(name), ByteTokenizer)


def test_a_path_is_a_file_or_a_folder(tmp_path):
    folder = save_tokenizer("words", tmp_path / "a")
    assert load_tokenizer(folder).encode("the") == load_tokenizer(folder / "tokenizer.json").encode(
        "the"
    )
    for missing in (tmp_path / "nothing", tmp_path):
        with pytest.raises(MissingFileError, match="does not exist"):
            load_tokenizer(missing)


def test_the_first_folder_with_a_tokenizer_is_found(tmp_path):
    empty, one, other = tmp_path / "empty", tmp_path / "one", tmp_path / "other"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    save_tokenizer("words", one)
    other.mkdir()
    (other / "spiece.model").write_text("")
    assert find_tokenizer([empty, tmp_path / "missing"]) is None
    assert find_tokenizer([empty, other, one]) == other
    assert find_tokenizer([one, other]) == one


def check(tokenizer, config, *, is_chosen: bool) -> None:
    check_tokens(tokenizer, config, is_chosen=is_chosen, option="--tokenizer")


def test_bytes_are_for_models_of_bytes_unless_chosen():
    tokenizer, config = ByteTokenizer(), dataclasses.replace(TINY, vocab_size=256)
    check(tokenizer, config, is_chosen=False)
    larger = dataclasses.replace(TINY, vocab_size=320)
    check(tokenizer, larger, is_chosen=True)
    with pytest.raises(UserError, match=r"vocab_size of 320 tokens is not that of bytes: .* --tok"):
        check(tokenizer, larger, is_chosen=False)
    two = CONFIGS["encoder-decoder"]
    two = dataclasses.replace(two, decoder=dataclasses.replace(two.decoder, vocab_size=256))
    two = dataclasses.replace(two, source_vocab_size=300)
    with pytest.raises(UserError, match="source_vocab_size of 300"):
        check(tokenizer, two, is_chosen=False)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path):
    tokenizer = load_tokenizer(save_tokenizer("words", tmp_path))
    check(tokenizer, dataclasses.replace(TINY, vocab_size=11), is_chosen=False)
    for is_chosen in (True, False):
        with pytest.raises(UserError, match="has 11 tokens; the model's vocab_size is 10"):
            check(tokenizer, dataclasses.replace(TINY, vocab_size=10), is_chosen=is_chosen)
