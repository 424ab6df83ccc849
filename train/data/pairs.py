"""Text pairs for encoder-decoders: a source text and the target text to generate from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from jaxllm.errors import UserError
from jaxllm.models import EncoderDecoder, Model
from jaxllm.tokenization import Tokenizer, check_tokens, load_tokenizer

from .batches import ArrayRows, Examples
from .files import BadRows, Policy, read_rows
from .held_out import check_split, split_held_out
from .text import text_of


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """Text pairs: the source files, the tokenizer and the fraction that is held out."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    trains: ClassVar[type[Model]] = EncoderDecoder

    pairs: tuple[str, ...]  # files, folders or globs
    source_key: str = "source"  # key of the source text in each line
    target_key: str = "target"  # key of the target text in each line
    # For both: tokenizer.json, a folder with files of a tokenizer, or "bytes"; None: that of
    # init_from, and bytes for a new model
    tokenizer: str | None = None
    eos: str | None = None  # end-of-sequence token, if the tokenizer's folder does not name it
    bad_rows: Policy = "stop"  # or "skip" those that cannot be used, and count them
    held_out: float = 0.02  # fraction of the sources that is never trained on
    seed: int = 0  # for the order of the training pairs
    max_epochs: int | None = None  # how often a run may take each row; None: as often as it needs

    def __post_init__(self) -> None:
        check_split(self.held_out, self.seed, self.max_epochs)

    def load(self, model: Model, seq_len: int) -> Examples:
        """Loads and tokenizes the pairs for `model`.

        Raises:
            UserError: the model is not an EncoderDecoder, the tokenizer is not usable, or a row is
                not: it lacks a text, or one is longer than `seq_len`.
            OSError: a file is missing or cannot be read.
        """
        if not isinstance(model, EncoderDecoder):
            raise UserError(
                "text pairs train an EncoderDecoder, but the model class of this run is "
                f"{type(model).__name__}"
            )
        tokenizer = load_tokenizer(self.tokenizer, eos=self.eos)
        is_chosen = self.tokenizer is not None or model.origin is None
        check_tokens(tokenizer, model.config, is_chosen=is_chosen, option="data.tokenizer")
        start = model.config.start_token
        if start is None:
            start = tokenizer.eos_id
        if start is None:
            raise UserError(
                "config.start_token=None: training needs the token that targets begin with"
            )
        bad = BadRows(self.bad_rows)
        keys = (self.source_key, self.target_key)

        def encode(record: object) -> Pair:
            source, target = (text_of(record, key) for key in keys)
            return encode_pair(source, target, tokenizer, seq_len)

        pairs = [pair for _, pair in bad.parsed(read_rows(self.pairs, keys), encode)]
        bad.report()
        # Split by source, so that no held-out source is trained on with another target.
        sources = [pair.text.encode() for pair in pairs]
        is_held = np.array(split_held_out(sources, self.held_out), bool)
        table = pad_pairs(pairs, start, seq_len)
        train, held_out = (
            ArrayRows({name: array[chosen] for name, array in table.items()})
            for chosen in (~is_held, is_held)
        )
        return Examples(
            train, held_out, {"train_pairs": train.digest(), "held_out_pairs": held_out.digest()}
        )


class Pair(NamedTuple):
    """The tokens of a source and of its target, and the text of the source."""

    text: str
    source: list[int]
    target: list[int]


def encode_pair(source: str, target: str, tokenizer: Tokenizer, seq_len: int) -> Pair:
    """Tokenizes a pair.

    A source is encoded as `jaxllm generate` encodes it, and an end-of-sequence token follows the
    target. Raises UserError if one is longer than `seq_len`.
    """
    pair = Pair(
        source,
        list(tokenizer.encode_source(source, trusted=False)),
        list(tokenizer.encode_document(target)),
    )
    if max(len(pair.source), len(pair.target)) > seq_len:
        raise UserError(
            f"this pair does not fit in seq_len={seq_len}: with their special tokens, its source "
            f"has {len(pair.source)} tokens and its target {len(pair.target)}"
        )
    return pair


def pad_pairs(pairs: Sequence[Pair], start: int, seq_len: int) -> dict[str, np.ndarray]:
    """Returns pairs as padded arrays.

    Args:
        pairs: the pairs, none longer than `seq_len`.
        start: the token id that every target starts with.
        seq_len: S and T; shorter texts are padded with 0.

    Returns:
        `source` and `source_mask` (B, S), where the mask is False at padding; `tokens` (B, T+1);
        and `mask` (B, T): which targets count.
    """
    sides = [[pair.source for pair in pairs], [pair.target for pair in pairs]]
    lengths = np.array([[len(tokens) for tokens in side] for side in sides]).reshape(2, -1)
    source, target = np.zeros((2, len(pairs), seq_len), np.int32)
    for padded, side in zip((source, target), sides, strict=True):
        for row, tokens in zip(padded, side, strict=True):
            row[: len(tokens)] = tokens
    source_mask, mask = np.arange(seq_len) < lengths[:, :, None]
    started = np.insert(target, 0, start, axis=1)
    return {"source": source, "source_mask": source_mask, "tokens": started, "mask": mask}
