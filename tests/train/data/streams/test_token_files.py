"""Tokens in files of others: what they hold, and files that are none."""

import numpy as np
import pytest
from token_files import write_llm_c, write_megatron, write_nanogpt

from jaxllm.errors import UserError
from jaxllm.train.data.streams.packing import pack
from jaxllm.train.data.streams.token_files import read_token_file, read_token_files
from jaxllm.train.data.streams.windows import TokenStream, Windows

END = 0
DOCUMENTS = [[5, 6, 7, END], [8, END], [9, 10, 11, 12, 13, 14, END], [15, 16, END]]
TOKENS = [token for document in DOCUMENTS for token in document]
STARTS = np.cumsum([0, *map(len, DOCUMENTS)])[:-1]


def write_npy(file, tokens):
    np.save(file, np.array(tokens, np.uint16))
    return file


def write_megatron_documents(file, tokens):
    sequences = [DOCUMENTS[0][:2], DOCUMENTS[0][2:]], [DOCUMENTS[1]], [DOCUMENTS[2]], [DOCUMENTS[3]]
    return write_megatron(file, sequences)


WRITERS = {
    "a.npy": write_npy,
    "a.bin": write_nanogpt,
    "llm_c.bin": write_llm_c,
    "megatron.bin": write_megatron_documents,
}


@pytest.mark.parametrize("name", WRITERS)
def test_tokens_and_documents_are_those_that_were_written(name, tmp_path):
    files = [WRITERS[name](tmp_path / f"{i}{name}", TOKENS) for i in range(2)]
    stream = read_token_files(files, END)
    np.testing.assert_array_equal(stream.tokens[:], TOKENS * 2)
    starts = np.concatenate([STARTS, STARTS + len(TOKENS)])
    np.testing.assert_array_equal(stream.find_starts(), starts)
    assert (stream.starts is None) == (name != "megatron.bin")
    ours = Windows(stream.tokens, 5, stream.starts, None, stream.ends_with)
    theirs = Windows(np.array(TOKENS * 2), 5, starts)
    for one, other in zip(
        (ours, pack(stream, 5, "best_fit")),
        (theirs, pack(TokenStream(np.array(TOKENS * 2), starts), 5, "best_fit")),
        strict=True,
    ):
        assert len(one) == len(other)
        found, expected = (each.take(range(len(each))) for each in (one, other))
        is_token = expected["segment_ids"] > 0  # positions of padding have no meaning
        for key, array in expected.items():
            chosen = slice(None) if key == "tokens" else is_token
            np.testing.assert_array_equal(found[key][chosen], array[chosen])


def test_documents_are_found_across_the_parts_that_are_searched(monkeypatch):
    monkeypatch.setattr("jaxllm.train.data.streams.windows.CHUNK", 3)
    stream = TokenStream(np.array(TOKENS), None, ends_with=END)
    np.testing.assert_array_equal(stream.find_starts(), STARTS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", b"nothing", "this is not a file of tokens"),
        ("a.npy", np.zeros((2, 2), np.uint16), r"it has shape \(2, 2\), not one dimension"),
        ("a.npy", np.zeros(4), "it has type float64, not integers"),
        ("a.npy", np.zeros(0, np.uint16), "this file of tokens is empty"),
        ("a.bin", b"", "this file of tokens is empty"),
        ("a.bin", b"abc", "3 bytes, an odd number"),
        ("a.txt", b"abcd", r"its name does not end in \.npy or \.bin"),
    ],
    ids=range(7),
)
def test_a_file_that_is_none_is_named(name, content, message, tmp_path):
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, content)
    with pytest.raises(UserError, match=rf"{name}: .*{message}"):
        read_token_file(file)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
@pytest.mark.parametrize("name", ["a.npy", "llm_c.bin", "megatron.bin"])
def test_a_file_that_is_cut_short_is_named(name, suffix, tmp_path):
    file = WRITERS[name](tmp_path / name, TOKENS)
    if suffix == ".idx" and name != "megatron.bin":
        return
    changed = file.with_suffix(suffix) if name == "megatron.bin" else file
    changed.write_bytes(changed.read_bytes()[:-3])
    with pytest.raises(UserError, match=rf"{name}: this is not a file of tokens: "):
        read_token_file(file)


def test_an_index_of_another_kind_is_named(tmp_path):
    file = write_nanogpt(tmp_path / "a.bin", TOKENS)
    (tmp_path / "a.idx").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match=r"a\.bin: .*: a\.idx beside it is no index of Megatron"):
        read_token_file(file)


def test_tokens_that_the_model_has_not_are_named(tmp_path):
    stream = read_token_files([write_nanogpt(tmp_path / "a.bin", TOKENS)], END, limit=16)
    stream.tokens[:8]
    with pytest.raises(UserError, match=r"a\.bin: it has the token 16, but the model has 16"):
        stream.tokens[:]
