"""Pairs of texts: a source that is read, and the target that is to be written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jaxllm.errors import UserError
from jaxllm.models import EncoderDecoder, Model

from .batches import Examples, Table
from .held_out import check_split, split_held_out
from .text import text_pairs
from .tokenizers import Tokenizer, check_tokens, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """Where pairs come from, how they become tokens, and what part of them is never trained on."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    pairs: tuple[str, ...]  # .jsonl files or globs
    source_key: str = "source"  # where a line has the text to read ...
    target_key: str = "target"  # ... and the text to write
    tokenizer: str | None = None  # of both; a tokenizer.json or its folder; None: tokens are bytes
    eos: str | None = None  # the token that ends a text, if the folder does not name it
    held_out: float = 0.02  # fraction of the sources
    seed: int = 0  # of the order in which pairs are seen

    def __post_init__(self) -> None:
        check_split(self.held_out, self.seed)

    def load(self, model: Model, seq_len: int) -> Examples:
        """The pairs as tokens. Raises UserError or OSError naming what is bad."""
        if not isinstance(model, EncoderDecoder):
            kind = type(model).__name__
            raise UserError(f"pairs train an EncoderDecoder, not the {kind} of this run")
        tokenizer = load_tokenizer(self.tokenizer, eos=self.eos)
        check_tokens(tokenizer, model)
        start = model.config.start_token
        pairs = text_pairs(self.pairs, (self.source_key, self.target_key))
        # By the source, so that no source of a held-out pair was trained on with another target.
        sources = [source.encode() for source, _ in pairs]
        is_held = np.array(split_held_out(sources, self.held_out), bool)
        table = tokenise(pairs, tokenizer, tokenizer.eos_id if start is None else start, seq_len)
        train, held_out = (
            Table({name: array[chosen] for name, array in table.items()})
            for chosen in (~is_held, is_held)
        )
        return Examples(
            train, held_out, {"train_pairs": train.digest(), "held_out_pairs": held_out.digest()}
        )


def tokenise(
    pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer, start: int, seq_len: int
) -> dict[str, np.ndarray]:
    """Sources, BS, and targets behind `start`, B and T+1, all ended and then filled up with 0.

    `source_mask`, BS, says what of a source is not filling, `mask`, BT, which targets count.
    Raises UserError if a text and its end are longer than `seq_len`.
    """
    ended = [
        [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
        for texts in ([source for source, _ in pairs], [target for _, target in pairs])
    ]
    lengths = np.array([[len(tokens) for tokens in side] for side in ended]).reshape(2, -1)
    if too_long := int(np.sum(lengths.max(axis=0, initial=0) > seq_len)):
        raise UserError(
            f"{too_long} of {len(pairs)} pairs do not fit in seq_len={seq_len}: the longest source "
            f"has {lengths[0].max()} tokens, the longest target {lengths[1].max()}, ends included"
        )
    source, target = np.zeros((2, len(pairs), seq_len), np.int32)
    for filled, side in zip((source, target), ended, strict=True):
        for row, tokens in zip(filled, side, strict=True):
            row[: len(tokens)] = tokens
    source_mask, mask = np.arange(seq_len) < lengths[:, :, None]
    begun = np.insert(target, 0, start, axis=1)
    return {"source": source, "source_mask": source_mask, "tokens": begun, "mask": mask}
