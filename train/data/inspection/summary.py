"""Summary of the rows of a run: how full they are, what is learned, and the texts of some."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from jaxllm.tokenization import Tokenizer
from jaxllm.train.data.batches import Batch, Batches

SAMPLED = 1024  # rows, the first that are trained on
QUANTILES = {"shortest": 0.0, "median": 0.5, "90 %": 0.9, "longest": 1.0}


@dataclass(frozen=True)
class SourceSummary:
    """Figures of one source; but for `rows` and `tokens`, of the sampled rows."""

    name: str
    rows: int
    tokens: int  # without padding
    share: float  # of the tokens that are trained on, which is 1 without a mixture
    filled: float  # tokens in rows, padding left out, over the places in them
    learned: float  # targets over the tokens
    documents: float  # in each row
    lengths: Mapping[str, int]  # of documents or their pieces in rows, by `QUANTILES`


@dataclass(frozen=True)
class Piece:
    """A text in a row, all of which is a target, or none of it."""

    text: str
    is_target: bool


@dataclass(frozen=True)
class ShownRow:
    """A decoded row: its documents, each as pieces."""

    source: str
    tokens: int
    targets: int
    padding: int
    documents: tuple[tuple[Piece, ...], ...]


@dataclass(frozen=True)
class DataSummary:
    """The rows that a run trains on."""

    seq_len: int
    sampled: int
    held_out_rows: int
    sources: tuple[SourceSummary, ...]
    shown: tuple[ShownRow, ...]


def summarize(
    batches: Batches, tokenizer: Tokenizer, seq_len: int, *, step: int = 0, rows: int = 4
) -> DataSummary:
    """Summarizes the data of a run.

    Args:
        batches: of a Decoder, all rows of each.
        tokenizer: to decode tokens.
        seq_len: T.
        step: whose rows are shown.
        rows: how many are shown.
    """
    sampled = _first_rows(batches, 0, min(SAMPLED, len(batches.examples.train)))
    shown = _first_rows(batches, step, rows)
    return DataSummary(
        seq_len,
        len(sampled["mask"]),
        len(batches.examples.held_out),
        tuple(_sources(batches, sampled)),
        tuple(show_rows(shown, tokenizer, _names(batches))),
    )


def show_rows(batch: Batch, tokenizer: Tokenizer, names: tuple[str, ...]) -> Iterator[ShownRow]:
    """Yields each row of a batch, decoded."""
    sources = batch.get("sources")
    for row, (tokens, mask) in enumerate(zip(batch["tokens"], batch["mask"], strict=True)):
        is_target = np.insert(mask, 0, False)
        own_T = _segments(batch)[row]
        # The last token of a row is no input: it is the target of the one before it, or nothing.
        segments = np.append(own_T, own_T[-1] if mask[-1] else 0)
        documents = []
        for segment in range(1, int(segments.max(initial=0)) + 1):
            own = np.flatnonzero(segments == segment)
            runs = itertools.groupby(own, key=lambda place: bool(is_target[place]))
            documents.append(
                tuple(
                    Piece(tokenizer.decode(tokens[list(places)]), learned)
                    for learned, places in runs
                )
            )
        source = names[int(sources[row].argmax())] if sources is not None else ""
        tokens_shown, padding = int(np.sum(segments > 0)), int(np.sum(own_T == 0))
        yield ShownRow(source, tokens_shown, int(mask.sum()), padding, tuple(documents))


def _segments(batch: Batch) -> np.ndarray:
    """The segments of the inputs; a row without any is one text, padded where nothing follows."""
    if "segment_ids" in batch:
        return batch["segment_ids"]
    mask = batch["mask"]
    last = mask.shape[1] - mask[:, ::-1].argmax(axis=1) * mask.any(axis=1)
    return (np.arange(mask.shape[1]) < last[:, None]).astype(np.int32)


def _sources(batches: Batches, sampled: Batch) -> Iterator[SourceSummary]:
    train, mixing = batches.examples.train, batches.examples.mixing
    names = _names(batches)
    segments = _segments(sampled)
    own = sampled.get("sources", np.ones((len(segments), 1), bool))
    all_tokens = max(int((segments > 0).sum()), 1)
    for number, name in enumerate(names):
        chosen = own[:, number]
        tokens = int((segments[chosen] > 0).sum())
        lengths = [
            count for row in segments[chosen] for count in np.bincount(row)[1:].tolist() if count
        ]
        part = train if mixing is None else train.parts[number]
        yield SourceSummary(
            name,
            len(part),
            part.num_tokens,
            tokens / all_tokens,
            tokens / max(segments[chosen].size, 1),
            int(sampled["mask"][chosen].sum()) / max(tokens, 1),
            len(lengths) / max(int(chosen.sum()), 1),
            {
                quantile: int(np.quantile(lengths, at, method="lower")) if lengths else 0
                for quantile, at in QUANTILES.items()
            },
        )


def _names(batches: Batches) -> tuple[str, ...]:
    mixing = batches.examples.mixing
    return ("",) if mixing is None else mixing.names


def _first_rows(batches: Batches, step: int, count: int) -> Batch:
    """Returns the first rows from a step on, in the order of training."""
    found: list[Batch] = []
    iterator = batches.train(step)
    while sum(len(batch["mask"]) for batch in found) < count:
        found.append(next(iterator))
    names = found[0] if found else ()
    return {name: np.concatenate([batch[name] for batch in found])[:count] for name in names}
