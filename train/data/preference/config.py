"""Preference data of a run: the files, the chat template, and rows of two sequences each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jaxllm.errors import UserError
from jaxllm.models import Decoder, Model
from jaxllm.tokenization import Tokenizer, check_tokens, load_tokenizer
from jaxllm.tokenization.chat import Chat
from jaxllm.tokenization.finding import BYTES
from jaxllm.train.data.batches import Batch, Examples, digest
from jaxllm.train.data.files import BadRows, Policy, read_rows
from jaxllm.train.data.held_out import check_split, split_held_out

from .pair import COLUMNS, EncodedPair, Preference, encode_preference, parse_preference

ENCODED = 256  # preferences at a time


@dataclass(frozen=True, kw_only=True)
class PreferencesConfig:
    """Preference data for DPO: files whose rows have a chosen and a rejected answer."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    trains: ClassVar[type[Model]] = Decoder

    # Files, folders or globs, of the formats of `text` with rows: `prompt`, `chosen` and `rejected`
    preferences: tuple[str, ...]
    # A chat template, where these are messages: a file ending in .jinja, or "chatml", "llama3" or
    # "plain"; None: that of the tokenizer
    template: str | None = None
    # tokenizer.json, a folder with files of a tokenizer, or "bytes"; None: that of init_from, and
    # bytes for a new model
    tokenizer: str | None = None
    eos: str | None = None  # end-of-sequence token, if the tokenizer's folder does not name it
    held_out: float = 0.02  # fraction of the prompts that is never trained on
    seed: int = 0  # for the order of the rows
    max_epochs: int | None = None  # how often a run may take each row; None: as often as it needs
    bad_rows: Policy = "stop"  # or "skip" those that cannot be used or do not fit, and count them

    def __post_init__(self) -> None:
        check_split(self.held_out, self.seed, self.max_epochs)

    def load(self, model: Model, seq_len: int) -> Examples:
        """Loads and tokenizes the preferences for `model`.

        Raises:
            UserError: the model is not a Decoder; a file, the tokenizer or the template is not
                usable; or a sequence is longer than `seq_len` + 1 tokens.
            OSError: a file is missing or cannot be read.
        """
        if not isinstance(model, Decoder):
            raise UserError(
                "preferences train a Decoder, but the model class of this run is "
                f"{type(model).__name__}"
            )
        tokenizer = load_tokenizer(self.tokenizer, eos=self.eos)
        is_chosen = self.tokenizer is not None or model.origin is None
        check_tokens(tokenizer, model.config, is_chosen=is_chosen, option="data.tokenizer")
        contents, pairs = self._read(tokenizer, seq_len)
        is_held = np.array(split_held_out(contents, self.held_out), bool)
        train, held_out = (
            PreferenceRows([pairs[row] for row in np.flatnonzero(chosen)], seq_len)
            for chosen in (~is_held, is_held)
        )
        fingerprint = {
            **{"train_preferences": train.digest(), "held_out_preferences": held_out.digest()},
            "seq_len": seq_len,
        }
        return Examples(train, held_out, fingerprint)

    def _read(self, tokenizer: Tokenizer, seq_len: int) -> tuple[list[bytes], list[EncodedPair]]:
        """Returns what each preference is split by, and its tokens."""
        rows, chat = BadRows(self.bad_rows), self._open_template()
        try:

            def encode(given: Sequence[Preference]) -> list[tuple[bytes, EncodedPair]]:
                most = seq_len + 1
                return [
                    (each.content(), encode_preference(each, tokenizer, chat, most))
                    for each in given
                ]

            parsed = rows.parsed(read_rows(self.preferences, COLUMNS), parse_preference)
            found = [made for _, made in rows.encoded(parsed, encode, ENCODED)]
        finally:
            if chat is not None:
                chat.close()
        rows.report()
        return [content for content, _ in found], [pair for _, pair in found]

    def _open_template(self) -> Chat | None:
        """Returns the chats of the tokenizer; None if it has no template, which texts need not."""
        path = None if self.tokenizer == BYTES else self.tokenizer
        try:
            return Chat.of(path, self.template)
        except UserError:
            if self.template is not None:
                raise
            return None


class PreferenceRows:
    """Rows of two sequences each, a chosen and a rejected one; their tokens are in one array.

    Args:
        pairs: the sequences.
        seq_len: T.
    """

    def __init__(self, pairs: Sequence[EncodedPair], seq_len: int):
        self.seq_len = seq_len
        both = [ids for pair in pairs for ids in (pair.chosen, pair.rejected)]
        self.tokens = np.array([token for ids in both for token in ids], np.int32)
        self.lengths = np.array([len(ids) for ids in both], np.int64).reshape(-1, 2)
        self.prompts = np.array([pair.prompt for pair in pairs], np.int64)
        self._first = np.cumsum(self.lengths.ravel()).reshape(-1, 2) - self.lengths

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def num_tokens(self) -> int:
        """The tokens of both sequences of all rows, without padding."""
        return len(self.tokens)

    def take(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Returns `tokens`, int32 (B, 2, T+1), the chosen sequence first, with padding behind.

        Also `targets`, bool (B, 2, T): those that are the answer's; `segment_ids`, int32
        (B, 2, T): 1, and 0 at padding; and `mask`, bool (B,): that every row counts.
        """
        rows = np.asarray(rows, np.int64)
        place = np.arange(self.seq_len + 1)
        lengths = self.lengths[rows][:, :, None]
        exists = place < lengths
        found = np.zeros(exists.shape, np.int32)
        found[exists] = self.tokens[(self._first[rows][:, :, None] + place)[exists]]
        is_answer = exists & (place >= np.maximum(self.prompts[rows], 1)[:, None, None])
        return {
            "tokens": found,
            "targets": is_answer[:, :, 1:],
            "segment_ids": exists[:, :, :-1].astype(np.int32),
            "mask": np.ones(len(rows), bool),
        }

    def digest(self) -> str:
        """Returns a hash of the tokens, and of where sequences and their prompts end."""
        return " ".join(map(digest, (self.tokens, self.lengths, self.prompts)))
