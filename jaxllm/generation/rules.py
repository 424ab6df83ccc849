"""Rules about tokens: which are suppressed, forced, or not yet allowed to end a text."""

import dataclasses
import math
from collections.abc import Iterator

from jaxllm.errors import UserError

IDS = ("allowed", "forced_eos", "suppress", "begin_suppress")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenRules:
    """Rules about tokens, which apply in the order of the fields.

    Their meaning is that of transformers' `GenerationConfig`. For an encoder-decoder the text is
    the target, which begins with the start token.

    Args:
        sequence_bias: pairs of a sequence of tokens and a number, which is added to the score of
            its last token where the text ends with the others.
        no_repeat_ngram_size: no n-gram of this size occurs twice in a text. 0: no rule.
        bad_words: sequences of tokens that are never completed. An end-of-sequence token is none.
        min_length: no end-of-sequence token before the text, with its prompt, has so many tokens.
        min_new_tokens: no end-of-sequence token before so many new tokens.
        allowed: the tokens to choose from. Empty: all.
        forced_bos: the first new token after a single token, such as the language of a target.
        forced_eos: one of these is the last of the `max_new_tokens`, if the text gets so long.
        suppress: tokens that are never chosen.
        begin_suppress: tokens that are not chosen as the first new token, or as the second if the
            first is forced.

    Raises:
        UserError: a number is below 0, a sequence is empty, or a bias is not a number.
    """

    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    no_repeat_ngram_size: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()
    min_length: int = 0
    min_new_tokens: int = 0
    allowed: tuple[int, ...] = ()
    forced_bos: int | None = None
    forced_eos: tuple[int, ...] = ()
    suppress: tuple[int, ...] = ()
    begin_suppress: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("no_repeat_ngram_size", "min_length", "min_new_tokens"):
            if (given := getattr(self, name)) < 0:
                raise UserError(f"{name}={given} is less than 0")
        for tokens, bias in self.sequence_bias:
            if math.isnan(bias) or bias == math.inf:
                raise UserError(f"sequence_bias of {tokens} is {bias}; it must be a number or -inf")
        if not all((*self.bad_words, *(tokens for tokens, _ in self.sequence_bias))):
            raise UserError("bad_words and sequence_bias need sequences of at least one token")

    def check(self, vocab_size: int) -> None:
        """Raises UserError for a token outside the vocabulary."""
        for name, tokens in self._named_tokens():
            if unknown := [token for token in tokens if not 0 <= token < vocab_size]:
                raise UserError(f"{name} has token {unknown[0]}, but vocab_size={vocab_size}")

    def _named_tokens(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((name, getattr(self, name)) for name in IDS)
        yield "forced_bos", () if self.forced_bos is None else (self.forced_bos,)
        yield from (("bad_words", tokens) for tokens in self.bad_words)
        yield from (("sequence_bias", tokens) for tokens, _ in self.sequence_bias)

    def biased_sequences(self, eos_ids: tuple[int, ...] = ()) -> dict[tuple[int, ...], float]:
        """Returns the bias of each sequence; that of bad words is -inf."""
        words = (word for word in self.bad_words if not (len(word) == 1 and word[0] in eos_ids))
        return {**dict(self.sequence_bias), **dict.fromkeys(words, -math.inf)}
