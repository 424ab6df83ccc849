"""Builds token streams from documents: split, encoded, in memory or in a cache on disk."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from jaxllm.storage.paths import check_output
from jaxllm.train.data.files import BadRows, Policy, Row
from jaxllm.train.data.held_out import choose_held_out, content_hash

from .stream_cache import read_stream
from .stream_writer import Encoded, StreamWriter
from .windows import TokenStream

Document = TypeVar("Document")
BATCH = 256  # documents encoded at a time


@dataclass(frozen=True)
class Source(Generic[Document]):
    """Documents that can be read again and again, and how they become tokens."""

    rows: Callable[[], Iterable[Row]]
    parse: Callable[[Any], Document]
    content: Callable[[Document], bytes]  # decides on which side of the split a document is
    encode: Callable[[Sequence[Document]], Sequence[Encoded]]
    identity: str  # of the encoding: streams of equal documents and identities are equal
    vocab_size: int
    has_targets: bool = False  # whether only some of the tokens are targets
    # Cuts a document at a fraction from its end, if it is the only one; None: it is not cut.
    cut: Callable[[Document, float], tuple[Document, Document]] | None = None
    close: Callable[[], None] = lambda: None  # ends what encoding needs

    def read(self, bad: BadRows, skip: int = 0) -> Iterator[tuple[Row, Document]]:
        """Yields the documents, but for the first `skip` rows."""
        return bad.parsed(islice(self.rows(), skip, None), self.parse)


class Streams(NamedTuple):
    """The streams of the training and of the held-out documents."""

    train: TokenStream
    held_out: TokenStream


def build_streams(
    source: Source[Document],
    held_out: float = 0,
    cache: str | None = None,
    bad_rows: Policy = "stop",
) -> Streams:
    """Reads the documents twice: to split them, and to encode them.

    Args:
        source: the documents.
        held_out: the fraction that is held out, chosen by their contents; with two or more
            different documents each side gets at least one.
        cache: a folder for files of tokens, which are then not held in memory; a later call reads
            them if they are sound and the documents have not changed.
        bad_rows: what to do with those that cannot be read or encoded.

    Raises:
        UserError: a file cannot be read, or a row of it, if these are to stop the run.
    """
    survey = _survey(source, held_out, bad_rows)
    files: list[Path | None] = [None, None]
    if cache is not None:
        folder = check_output(cache)
        files = [folder / f"{name}.npy" for name in survey.names]
        cached = [read_stream(file) for file in files if file is not None]
        if (train := cached[0]) is not None and (other := cached[1]) is not None:
            return Streams(train, other)
    dtype = np.min_scalar_type(source.vocab_size - 1)
    writers = [StreamWriter(dtype, file, with_targets=source.has_targets) for file in files]
    rows = BadRows(bad_rows)
    try:
        sided = _sided(source, rows, survey, held_out)
        for _, (is_held, encoded) in rows.encoded(sided, _on_its_side(source), BATCH):
            writers[is_held].add([encoded])
        streams = Streams(*(writer.close() for writer in writers))
    except BaseException:
        for writer in writers:
            writer.abandon()
        raise
    rows.report()
    return streams


class _Survey(NamedTuple):
    """Findings of the first reading: which documents are held out, and names for both sides."""

    is_held: np.ndarray
    is_one: bool  # all documents are the same one, which is cut
    names: tuple[str, str]


def _survey(source: Source[Document], held_out: float, policy: Policy) -> _Survey:
    hashes: list[int] = []
    whole = [blake2b(f"{source.identity} {held_out}".encode(), digest_size=16) for _ in range(2)]
    digests = []
    for _, document in source.read(BadRows(policy)):
        content = source.content(document)
        hashes.append(content_hash(content))
        digests.append(blake2b(content, digest_size=16).digest())
    numbers = np.array(hashes, np.uint64)
    is_one = bool(held_out) and source.cut is not None and len(set(digests)) == 1
    is_held = choose_held_out(numbers, held_out)
    for digest, held in zip(digests, is_held, strict=True):
        whole[int(held)].update(digest)
    whole[1].update(whole[0].digest() if is_one else b"held out")
    return _Survey(is_held, is_one, (whole[0].hexdigest(), whole[1].hexdigest()))


def _sided(
    source: Source[Document], rows: BadRows, survey: _Survey, held_out: float
) -> Iterator[tuple[Row, tuple[bool, Document]]]:
    """Yields each document with whether it is held out."""
    for index, (row, document) in enumerate(source.read(rows)):
        if survey.is_one and source.cut is not None:
            for is_held, part in zip((False, True), source.cut(document, held_out), strict=True):
                yield row, (is_held, part)
            return
        yield row, (bool(survey.is_held[index]), document)


def _on_its_side(
    source: Source[Document],
) -> Callable[[Sequence[tuple[bool, Document]]], list[tuple[bool, Encoded]]]:
    def encode(given: Sequence[tuple[bool, Document]]) -> list[tuple[bool, Encoded]]:
        encoded = source.encode([document for _, document in given])
        return [(is_held, each) for (is_held, _), each in zip(given, encoded, strict=True)]

    return encode
