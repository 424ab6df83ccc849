"""Pieces of streamed text are whole characters, and together the text of all tokens."""

import pytest
from tokenizer_kinds import save_tokenizer

from jaxllm.tokenization import ByteTokenizer, load_tokenizer
from jaxllm.tokenization.text_stream import TextStream

TEXT = "a ä 猫 👩‍🚀 é\n\n  end"


def pieces(tokenizer, tokens: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.add([token]) for token in tokens), stream.finish()]


def test_characters_of_several_bytes_come_whole():
    tokens = list(TEXT.encode())
    found = pieces(ByteTokenizer(), tokens)
    assert "".join(found) == TEXT
    assert "\ufffd" not in "".join(found[:-1])
    assert set(found) <= {"", *TEXT}


@pytest.mark.parametrize("text", ["the cat a b x", "x the"])
def test_spaces_between_words_are_kept(text, tmp_path):
    tokenizer = load_tokenizer(save_tokenizer("words", tmp_path / "words"))
    tokens = tokenizer.encode(text)
    assert "".join(pieces(tokenizer, tokens)) == tokenizer.decode(tokens)


def test_what_is_no_character_comes_at_the_end():
    found = pieces(ByteTokenizer(), [97, 0xE7, 0x8C])
    assert found == ["a", "", "", "\ufffd"]
