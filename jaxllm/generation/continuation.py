"""Continuations: the new tokens of a prompt, and why they ended."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np

from jaxllm.errors import NonFiniteError, UserError
from jaxllm.sharding import to_host

from .loop import AT_EOS, AT_LIMIT, AT_STOP, NOT_FINITE, RUNNING, Progress

Ended = Literal["eos", "stop", "length"]
REASONS: dict[int, Ended] = {AT_EOS: "eos", AT_STOP: "stop", AT_LIMIT: "length"}
STEPS_PER_SEARCH = 16  # tokens between two searches for stop strings

# Called with the index of a row and its next tokens.
Stream = Callable[[int, list[int]], None]


class Decodes(Protocol):
    """A tokenizer, as far as generation needs one."""

    def decode(self, tokens: list[int]) -> str:
        """Returns the text of tokens."""


class Continuation(list[int]):
    """The new tokens of a prompt, with the token that ended them: a list of token ids.

    Attributes:
        ended: why the tokens ended: "eos", an end-of-sequence token; "stop", one of `stop_ids` or
            a text of `stop_strings`; "length", the most new tokens.
        log_probs: the log-probability of each token in the model, before penalties, rules and
            sampling; None unless they were asked for.
        text: the text of the tokens without the one that ended them, up to the first of
            `stop_strings`; None without a tokenizer.
        drafted: the tokens that a draft model proposed; 0 without one.
        accepted: those of them that the model took.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        ended: Ended,
        log_probs: list[float] | None = None,
        text: str | None = None,
        drafted: int = 0,
        accepted: int = 0,
    ):
        super().__init__(tokens)
        self.ended, self.log_probs, self.text = ended, log_probs, text
        self.drafted, self.accepted = drafted, accepted


class Follower:
    """Follows rows as they are generated: streams them, and ends them at stop strings."""

    def __init__(
        self,
        num_rows: int,
        end_ids: set[int],
        tokenizer: Decodes | None = None,
        stop_strings: Sequence[str] = (),
        stream: Stream | None = None,
    ):
        if stop_strings and (tokenizer is None or not all(stop_strings)):
            raise UserError("stop_strings need a tokenizer, and none of them may be empty")
        self.tokens: list[list[int]] = [[] for _ in range(num_rows)]
        self.is_stopped = [False] * num_rows  # by a stop string
        self.end_ids, self.tokenizer, self.stop_strings = end_ids, tokenizer, stop_strings
        self.stream = stream

    @property
    def steps(self) -> int | None:
        """Tokens to generate before the rows are looked at; None: all."""
        if self.stream is not None:
            return 1
        return STEPS_PER_SEARCH if self.stop_strings else None

    def follow(self, progress: Progress) -> np.ndarray | None:
        """Takes new tokens; returns why each row has ended, B, or None if all have."""
        tokens_BS, lengths_B, starts_B = map(to_host, progress.text)
        ended_B = np.array(to_host(progress.ended_B))
        for row, known in enumerate(self.tokens):
            if self.is_stopped[row]:
                continue
            whole = tokens_BS[row, starts_B[row] : lengths_B[row]].tolist()
            count = self._stop(whole, len(known))
            if count is not None:
                self.is_stopped[row], ended_B[row] = True, AT_STOP
            fresh = whole[len(known) : count]
            known.extend(fresh)
            if self.stream is not None and fresh:
                self.stream(row, fresh)
        return ended_B if (ended_B == RUNNING).any() else None

    def _stop(self, tokens: list[int], known: int) -> int | None:
        """Returns the number of tokens that first have a stop string; None if they have none."""
        if not self.stop_strings or self._find(tokens) is None:
            return None
        counts = range(known + 1, len(tokens) + 1)
        return next(count for count in counts if self._find(tokens[:count]) is not None)

    def _find(self, tokens: list[int]) -> str | None:
        """Returns the text before the first stop string; None if there is no such string."""
        text = self._decode(tokens)
        places = [place for stop in self.stop_strings if (place := text.find(stop)) >= 0]
        return text[: min(places)] if places else None

    def _decode(self, tokens: list[int]) -> str:
        assert self.tokenizer is not None, "stop strings need one"
        ends = len(tokens) - 1 if tokens and tokens[-1] in self.end_ids else None
        return self.tokenizer.decode(tokens[:ends])

    def continuations(self, progress: Progress, *, with_log_probs: bool) -> list[Continuation]:
        """Returns the continuation of each row. Raises NonFiniteError if logits were NaN."""
        ended_B, starts_B = to_host(progress.ended_B), to_host(progress.text.starts_B)
        log_probs_BS = to_host(progress.log_probs_BS)
        check_finite(ended_B != NOT_FINITE)
        counts_B2 = np.zeros((len(ended_B), 2), int)
        if (draft := progress.draft) is not None:
            counts_B2 = np.stack([to_host(draft.drafted_B), to_host(draft.accepted_B)], axis=1)
        found = []
        for row, tokens in enumerate(self.tokens):
            start = starts_B[row]
            log_probs = log_probs_BS[row, start : start + len(tokens)].tolist()
            stopped = self.is_stopped[row]
            text = None
            if self.tokenizer is not None:
                text = self._find(tokens) if stopped else self._decode(tokens)
            ended = "stop" if stopped else REASONS[int(ended_B[row])]
            own_log_probs = log_probs if with_log_probs else None
            counts = counts_B2[row].tolist()
            found.append(Continuation(tokens, ended, own_log_probs, text, *counts))
        return found


def check_finite(is_finite_B: np.ndarray) -> None:
    """Raises NonFiniteError if the logits of a row were NaN."""
    if not is_finite_B.all():
        raise NonFiniteError(
            f"the logits after prompt {int(np.argmin(is_finite_B))} are NaN, so no token can be "
            "chosen: a weight is not finite (`jaxllm verify` counts these), or activations "
            "overflow, as they may in float16"
        )
