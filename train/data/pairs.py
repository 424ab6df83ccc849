"""Text pairs for encoder-decoders: a source text and the target text to generate from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jaxllm.errors import UserError
from jaxllm.models import EncoderDecoder, Model
from jaxllm.tokenization import Tokenizer, check_tokens, load_tokenizer

from .batches import ArrayRows, Examples
from .held_out import check_split, split_held_out
from .text import text_pairs


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """Text pairs: the source files, the tokenizer and the fraction that is held out."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    trains: ClassVar[type[Model]] = EncoderDecoder

    pairs: tuple[str, ...]  # .jsonl files or globs
    source_key: str = "source"  # key of the source text in each line
    target_key: str = "target"  # key of the target text in each line
    # For both: tokenizer.json, a folder with files of a tokenizer, or "bytes"; None: that of
    # init_from, and bytes for a new model
    tokenizer: str | None = None
    eos: str | None = None  # end-of-sequence token, if the tokenizer's folder does not name it
    held_out: float = 0.02  # fraction of the sources that is never trained on
    seed: int = 0  # for the order of the training pairs
    max_epochs: int | None = None  # how often a run may take each row; None: as often as it needs

    def __post_init__(self) -> None:
        check_split(self.held_out, self.seed, self.max_epochs)

    def load(self, model: Model, seq_len: int) -> Examples:
        """Loads and tokenizes the pairs for `model`.

        Raises:
            UserError: the model is not an EncoderDecoder, a file or the tokenizer is not usable,
                or a text is longer than `seq_len`.
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
        pairs = text_pairs(self.pairs, (self.source_key, self.target_key))
        # Split by source, so that no held-out source is trained on with another target.
        sources = [source.encode() for source, _ in pairs]
        is_held = np.array(split_held_out(sources, self.held_out), bool)
        table = tokenize_pairs(pairs, tokenizer, start, seq_len)
        train, held_out = (
            ArrayRows({name: array[chosen] for name, array in table.items()})
            for chosen in (~is_held, is_held)
        )
        return Examples(
            train, held_out, {"train_pairs": train.digest(), "held_out_pairs": held_out.digest()}
        )


def tokenize_pairs(
    pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer, start: int | None, seq_len: int
) -> dict[str, np.ndarray]:
    """Tokenizes pairs into padded arrays.

    Args:
        pairs: (source, target) texts. A source is encoded as `jaxllm generate` encodes it, and an
            end-of-sequence token follows each target.
        tokenizer: for sources and targets.
        start: the token id that every target starts with.
        seq_len: S and T; shorter texts are padded with 0.

    Returns:
        `source` and `source_mask` (B, S), where the mask is False at padding; `tokens` (B, T+1);
        and `mask` (B, T): which targets count.

    Raises:
        UserError: a text with its special tokens is longer than `seq_len`, or the start token is
            not known.
    """
    if start is None:
        raise UserError("config.start_token=None: training needs the token that targets begin with")
    ended = [
        [tokenizer.encode_source(source, trusted=False) for source, _ in pairs],
        [tokenizer.encode_document(target) for _, target in pairs],
    ]
    lengths = np.array([[len(tokens) for tokens in side] for side in ended]).reshape(2, -1)
    if too_long := int(np.sum(lengths.max(axis=0, initial=0) > seq_len)):
        raise UserError(
            f"{too_long} of {len(pairs)} pairs do not fit in seq_len={seq_len}: with their "
            f"special tokens, the longest source has {lengths[0].max()} tokens and the "
            f"longest target {lengths[1].max()}"
        )
    source, target = np.zeros((2, len(pairs), seq_len), np.int32)
    for padded, side in zip((source, target), ended, strict=True):
        for row, tokens in zip(padded, side, strict=True):
            row[: len(tokens)] = tokens
    source_mask, mask = np.arange(seq_len) < lengths[:, :, None]
    started = np.insert(target, 0, start, axis=1)
    return {"source": source, "source_mask": source_mask, "tokens": started, "mask": mask}
