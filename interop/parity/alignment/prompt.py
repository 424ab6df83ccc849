"""Tokens and vectors to compare on: from text, drawn at random, or read from a file."""

import json
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import numpy as np

from jaxllm.errors import MissingPackageError, UserError
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.tokenization import ByteTokenizer, Tokenizer, find_tokenizer, load_tokenizer
from jaxllm.untrusted.array_files import check_archive
from jaxllm.untrusted.regular_files import read_bytes

# Over the first few tokens, a wrong rotary frequency makes no visible difference.
MIN_TOKENS = 300


def random_tokens(vocab_size: int, batch_size: int, num_tokens: int, seed: int) -> np.ndarray:
    """Draws token ids, BT: rare ones, frequent ones, repetitions, both ends of the vocabulary.

    Uniform draws from a large vocabulary would hardly ever repeat a token, so attention would
    have nothing to match.
    """
    rng = np.random.default_rng(seed)
    shape = (batch_size, num_tokens)
    rare_BT = rng.integers(vocab_size, size=shape)
    frequent_BT = rng.choice(rng.integers(vocab_size, size=16), shape)
    tokens_BT = np.where(rng.random(shape) < 0.5, rare_BT, frequent_BT)
    quarter = num_tokens // 4
    tokens_BT[:, -quarter:] = tokens_BT[:, :quarter]
    tokens_BT[:, 1], tokens_BT[:, 2] = 0, vocab_size - 1
    return tokens_BT


def random_vectors(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Draws standard normal numbers in float32."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


class FurtherText(NamedTuple):
    """The text that follows the inputs, for later batches.

    Attributes:
        words: what it is, in words.
        draw: returns batch `number`, from 1, of an input by name: BT, given its shape.
    """

    words: str
    draw: Callable[[str, tuple[int, int], int], np.ndarray]


def windows(ids: np.ndarray, num_tokens: int, number: int) -> np.ndarray:
    """Returns one of the successive windows of a text, which is repeated if it is too short."""
    return np.resize(ids, (number + 1) * num_tokens)[number * num_tokens :]


def following_text(ids: Mapping[str, np.ndarray]) -> FurtherText:
    """Returns the windows that follow the first of a text, given its tokens for each input."""

    def draw(name: str, shape: tuple[int, int], number: int) -> np.ndarray:
        return windows(ids[name], shape[1], number)[None]

    return FurtherText("successive windows of the given text", draw)


def text_ids(text: str, folder: Path, vocab_size: int, *, is_source: bool = False) -> np.ndarray:
    """Tokenizes a text with the tokenizer of a folder, or as bytes if the vocabulary is theirs.

    It is encoded as `jaxllm generate` encodes a prompt or a source.

    Raises:
        UserError: the text has no tokens.
        CheckpointError: the folder's tokenizer cannot be read or does not fit the model, or there
            is none and the vocabulary is not that of bytes.
    """
    tokenizer = _read_tokenizer(folder)
    if tokenizer is None and vocab_size != ByteTokenizer.vocab_size:
        raise CheckpointError(
            f"{folder} has no tokenizer, and its vocabulary of {vocab_size} tokens is not that of "
            "bytes: give token ids instead"
        )
    tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
    ids = tokenizer.encode_source(text) if is_source else tokenizer.encode_prompt(text)
    if not ids:
        raise UserError("the text is empty: it has no tokens")
    if max(ids) >= vocab_size:
        raise CheckpointError(
            f"{folder}: its tokenizer gives token {max(ids)}, but the model has {vocab_size} tokens"
        )
    return np.array(ids)


def tokenizer_of(folder: Path) -> Tokenizer | None:
    """Returns the tokenizer of a folder; None if it has none, or one whose package is missing.

    Raises:
        CheckpointError: the tokenizer cannot be read.
    """
    try:
        return _read_tokenizer(folder)
    except MissingPackageError:
        return None


def _read_tokenizer(folder: Path) -> Tokenizer | None:
    found = find_tokenizer([folder])
    try:
        return None if found is None else load_tokenizer(found)
    except MissingPackageError:
        raise
    except UserError as error:
        raise CheckpointError(str(error).splitlines()) from None


def english_tokens(
    tokenizer: Tokenizer,
    vocab_size: int,
    batch_size: int,
    num_tokens: int,
    seed: int,
    number: int = 0,
) -> np.ndarray:
    """Tokenizes pages of Python's own documentation, BT, from places that the seed decides.

    With a `number`, the text is that many windows later.

    The pages are those of the running Python. The first row is text alone. The others also have
    random tokens, which are mostly rare, the tokenizer's special tokens, one token many times, and
    the beginning of the row once more.

    Raises:
        UserError: the vocabulary has none of the text's tokens.
    """
    places, rng = np.random.default_rng(seed), np.random.default_rng((seed, number))
    text = "\n".join(topics[name] for name in sorted(topics))
    special = [token for token in tokenizer.special_ids if token < vocab_size]
    rows = []
    for row in range(batch_size):
        start = int(places.integers(len(text)))
        ids = np.array(
            tokenizer.encode_prompt((text[start:] + text)[: 16 * num_tokens * (number + 1)])
        )
        if not (ids < vocab_size).any():
            raise UserError("the tokenizer has no tokens for English text: compare on others")
        ids_T = windows(ids[ids < vocab_size], num_tokens, number)
        if row > 0:
            part = num_tokens // 6
            ids_T[2 * part : 3 * part] = rng.integers(vocab_size, size=part)
            ids_T[3 * part : 3 * part + part // 2] = ids_T[1]
            ids_T[4 * part : 5 * part] = ids_T[:part]
            if special:
                at = rng.choice(num_tokens, min(num_tokens // 12, 2 * len(special)), False)
                ids_T[at] = np.resize(special, len(at))
        rows.append(ids_T)
    return np.stack(rows)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads arrays by the names of `Inputs` from a file.

    Args:
        path: a `.npy` of the target, a `.npz`, or a `.json`: a list of rows of token ids for the
            target, or an object of such lists by name. Shorter rows are padded.

    Raises:
        OSError: the file cannot be read.
        UserError: the file is not of one of these formats.
    """
    if path.suffix not in _READERS:
        raise UserError(f"{path} is not a .npy, .npz or .json file")
    content = BytesIO(read_bytes(path))
    try:
        return _READERS[path.suffix](content)
    except Exception as error:  # NumPy and zipfile raise various types for truncated files
        raise UserError(f"{path}: {error}") from None


def _read_array(content: BytesIO) -> dict[str, np.ndarray]:
    return {"target": np.lib.format.read_array(content, allow_pickle=False)}


def _read_archive(content: BytesIO) -> dict[str, np.ndarray]:
    check_archive(content)
    with np.lib.npyio.NpzFile(content, allow_pickle=False) as archive:
        return {name: np.asarray(array) for name, array in archive.items()}


def _read_rows(content: BytesIO) -> dict[str, np.ndarray]:
    given = json.load(content)
    arrays: dict[str, np.ndarray] = {}
    for name, rows in (given if isinstance(given, dict) else {"target": given}).items():
        arrays |= _padded(name, rows)
    return arrays


_READERS: dict[str, Callable[[BytesIO], dict[str, np.ndarray]]] = {
    ".npy": _read_array,
    ".npz": _read_archive,
    ".json": _read_rows,
}


def _padded(name: str, rows: Any) -> dict[str, np.ndarray]:
    """Pads rows of token ids to one length; returns a mask too if their lengths differ."""
    is_rows = isinstance(rows, list) and rows and all(isinstance(row, list) for row in rows)
    if not is_rows or not all(type(token) is int for row in rows for token in row):
        raise UserError(f"{name} is not a list of lists of integers")
    lengths = np.array([len(row) for row in rows])
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int32)
    tokens = np.zeros(mask.shape, np.int32)
    tokens[mask == 1] = [token for row in rows for token in row]
    return {name: tokens} if mask.all() else {name: tokens, f"{name}_mask": mask}
