"""Rules about tokens: which are suppressed, forced, or not yet allowed to end a text."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxllm.errors import UserError


class Written(NamedTuple):
    """Tokens written so far: prompts, or the start token of targets, and new tokens."""

    tokens_BT: Array  # padded on the right
    lengths_B: Array  # tokens per row, without padding
    new_BR: Array  # new tokens; the first `num_new` are set
    num_new: Array

    @property
    def text(self) -> Array:
        """The tokens of each row, one after the other, BS, S = T + R."""
        B, R = self.new_BR.shape
        places = jnp.arange(B)[:, None], self.lengths_B[:, None] + jnp.arange(R)
        return jnp.pad(self.tokens_BT, ((0, 0), (0, R))).at[places].set(self.new_BR)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenRules:
    """Rules about single tokens, which apply in the order of the fields.

    Their meaning is that of transformers' `GenerationConfig`. For an encoder-decoder the text is
    the target, which begins with the start token.

    Args:
        no_repeat_ngram_size: no n-gram of this size occurs twice in a text. 0: no rule.
        min_length: no end-of-sequence token before the text, with its prompt, has so many tokens.
        min_new_tokens: no end-of-sequence token before so many new tokens.
        forced_bos: the first new token after a single token, such as the language of a target.
        forced_eos: one of these is the last of the `max_new_tokens`, if the text gets so long.
        suppress: tokens that are never chosen.
        begin_suppress: tokens that are not chosen as the first new token, or as the second if the
            first is forced.

    Raises:
        UserError: a number is below 0.
    """

    no_repeat_ngram_size: int = 0
    min_length: int = 0
    min_new_tokens: int = 0
    forced_bos: int | None = None
    forced_eos: tuple[int, ...] = ()
    suppress: tuple[int, ...] = ()
    begin_suppress: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("no_repeat_ngram_size", "min_length", "min_new_tokens"):
            if (given := getattr(self, name)) < 0:
                raise UserError(f"{name}={given} is less than 0")

    def check(self, vocab_size: int) -> None:
        """Raises UserError for a token outside the vocabulary."""
        for name in ("forced_bos", "forced_eos", "suppress", "begin_suppress"):
            given = getattr(self, name)
            ids = given if isinstance(given, tuple) else () if given is None else (given,)
            if unknown := [token for token in ids if not 0 <= token < vocab_size]:
                raise UserError(f"{name} has token {unknown[0]}, but vocab_size={vocab_size}")

    def __call__(
        self, scores_BV: Array, written: Written, *, limit: ArrayLike, eos_ids: ArrayLike
    ) -> Array:
        """Applies the rules to the scores of the next token.

        Args:
            scores_BV: logits or log-probabilities.
            written: the text that the token continues.
            limit: the largest number of new tokens.
            eos_ids: end-of-sequence tokens.

        Returns:
            The scores, BV: -inf for tokens that are not allowed, and 0 for a forced one.
        """
        if self == TokenRules():
            return scores_BV
        tokens_V = jnp.arange(scores_BV.shape[-1])
        count, length_B1 = written.num_new, (written.lengths_B + written.num_new)[:, None]
        if self.no_repeat_ngram_size:
            scores_BV = jnp.where(self._repeats(written, len(tokens_V)), -jnp.inf, scores_BV)
        is_early_B1 = (length_B1 < self.min_length) | jnp.less(count, self.min_new_tokens)
        is_eos_V = jnp.isin(tokens_V, jnp.asarray(eos_ids, jnp.int32))
        scores_BV = jnp.where(is_early_B1 & is_eos_V, -jnp.inf, scores_BV)
        for forced, applies in (
            (() if self.forced_bos is None else (self.forced_bos,), length_B1 == 1),
            (self.forced_eos, count == limit - 1),
        ):
            if forced:
                only_V = jnp.where(_among(tokens_V, forced), 0.0, -jnp.inf)
                scores_BV = jnp.where(applies, only_V, scores_BV)
        scores_BV = jnp.where(_among(tokens_V, self.suppress), -jnp.inf, scores_BV)
        is_forced_B = jnp.equal(written.lengths_B, 1) & (self.forced_bos is not None)
        is_begin_BV = jnp.equal(count, jnp.where(is_forced_B, 1, 0))[:, None] & _among(
            tokens_V, self.begin_suppress
        )
        return jnp.where(is_begin_BV, -jnp.inf, scores_BV)

    def _repeats(self, written: Written, vocab_size: int) -> Array:
        """Returns which tokens would end an n-gram that already occurs in the text, BV."""
        n, text_BS = self.no_repeat_ngram_size, written.text
        B, S = text_BS.shape
        length_B1 = (written.lengths_B + written.num_new)[:, None]
        starts = jnp.arange(S)[None]

        def compare(k: Array, is_same_BS: Array) -> Array:
            last_B1 = jnp.take_along_axis(text_BS, jnp.maximum(length_B1 - n + 1 + k, 0), axis=1)
            return is_same_BS & (jnp.roll(text_BS, -k, axis=1) == last_B1)

        is_same_BS = starts + n <= length_B1  # n-grams that are written in full
        is_same_BS = jax.lax.fori_loop(0, min(n, S) - 1, compare, is_same_BS)
        ends_BS = jnp.where(is_same_BS, jnp.roll(text_BS, 1 - n, axis=1), vocab_size)
        banned_BV = jnp.zeros((B, vocab_size), bool)
        return banned_BV.at[jnp.arange(B)[:, None], ends_BS].set(True, mode="drop")


def _among(tokens_V: Array, ids: tuple[int, ...]) -> Array:
    return jnp.isin(tokens_V, jnp.asarray(ids, jnp.int32))
