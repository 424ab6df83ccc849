"""Processors of the scores of the next token, before one is chosen, in transformers' order.

Every number is an array, one for each row, so that one program serves any settings. What no row
asks for is skipped when the program runs.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .thresholds import (
    keep_above_epsilon,
    keep_above_eta,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
)

# Bits of the sets that a token may belong to, in `Settings.sets_BV`.
EOS, STOP, SUPPRESSED, BEGIN_SUPPRESSED, FORCED_EOS, FORBIDDEN = (1 << bit for bit in range(6))


class Text(NamedTuple):
    """The tokens of each row: a prompt, or the start token of a target, and the new tokens."""

    tokens_BS: Array  # padded on the right
    lengths_B: Array  # tokens so far
    starts_B: Array  # tokens of the prompt

    def occurrences(self, vocab_size: int, first_B: Array | int = 0) -> Array:
        """Returns how often each token occurs from index `first_B` on, BV."""
        B, S = self.tokens_BS.shape
        places_BS = jnp.arange(S)[None]
        is_own_BS = (places_BS < self.lengths_B[:, None]) & (
            places_BS >= jnp.reshape(first_B, (-1, 1))
        )
        tokens_BS = jnp.where(is_own_BS, self.tokens_BS, vocab_size)  # this index is dropped
        return jnp.zeros((B, vocab_size), jnp.int32).at[jnp.arange(B)[:, None], tokens_BS].add(1)


class Settings(NamedTuple):
    """The settings of each row: see `Sampling` and `TokenRules` for their meaning."""

    repetition_penalty_B: Array
    presence_penalty_B: Array
    frequency_penalty_B: Array
    temperature_B: Array
    top_k_B: Array  # the size of the vocabulary: no limit
    top_p_B: Array
    min_p_B: Array
    typical_p_B: Array
    epsilon_cutoff_B: Array
    eta_cutoff_B: Array
    no_repeat_ngram_size_B: Array
    min_length_B: Array
    min_new_tokens_B: Array
    forced_bos_B: Array  # -1: none
    sets_BV: Array  # uint8: the sets that a token belongs to, as bits
    has_B: Array  # uint8: the sets that any token belongs to
    biased_BWL: Array  # sequences with a bias, padded with -1 on the left
    bias_BW: Array
    limit_B: Array  # the most new tokens
    seeds_B2: Array  # uint32: a seed and a number, from which the random numbers are drawn

    def among(self, bits: int) -> Array:
        """Returns which tokens are in one of these sets, BV."""
        return (self.sets_BV & jnp.uint8(bits)) != 0

    def have(self, bits: int) -> Array:
        """Returns which rows have a token in one of these sets, B."""
        return (self.has_B & jnp.uint8(bits)) != 0

    def keys(self, index_B: Array) -> Array:
        """Returns the random key of each row's new token of this index, B."""

        def key(seed_2: Array, index: Array) -> Array:
            of_row = jax.random.fold_in(jax.random.key(seed_2[0]), seed_2[1])
            return jax.random.fold_in(of_row, index)

        return jax.vmap(key)(self.seeds_B2, index_B)


# (logits_BV, limit_B) -> logits_BV
Cut = Callable[[Array, Array], Array]
# A stage of `process`: (scores_BV, text, settings) -> scores_BV
Stage = Callable[[Array, Text, Settings], Array]
# A user's own function: (scores_BV, text) -> scores_BV
Processor = Callable[[Array, Text], Array]


def process(scores_BV: Array, text: Text, settings: Settings) -> Array:
    """Applies penalties and the rules about tokens to logits or log-probabilities, BV."""
    needed = [is_needed_B.any() for is_needed_B in _needs(text, settings)]

    def apply_all(scores_BV: Array) -> Array:
        for is_needed, apply in zip(needed, STAGES, strict=True):
            scores_BV = jax.lax.cond(
                is_needed, lambda x, apply=apply: apply(x, text, settings), lambda x: x, scores_BV
            )
        return scores_BV

    return jax.lax.cond(jnp.stack(needed).any(), apply_all, lambda x: x, scores_BV)


def warp(logits_BV: Array, settings: Settings) -> Array:
    """Divides logits by the temperature and sets tokens outside the limits of sampling to -inf."""
    logits_BV = logits_BV / _temperature(settings)[:, None]
    for cut, limit_B, is_needed_B in (
        (keep_top_k, settings.top_k_B, settings.top_k_B < logits_BV.shape[-1]),
        (keep_top_p, settings.top_p_B, settings.top_p_B < 1),
        (keep_min_p, settings.min_p_B, settings.min_p_B > 0),
        (keep_typical, settings.typical_p_B, settings.typical_p_B < 1),
        (keep_above_epsilon, settings.epsilon_cutoff_B, settings.epsilon_cutoff_B > 0),
        (keep_above_eta, settings.eta_cutoff_B, settings.eta_cutoff_B > 0),
    ):
        cut_rows = partial(_cut_rows, cut, limit_B, is_needed_B)
        logits_BV = jax.lax.cond(is_needed_B.any(), cut_rows, lambda x: x, logits_BV)
    return logits_BV


def _cut_rows(cut: Cut, limit_B: Array, is_needed_B: Array, logits_BV: Array) -> Array:
    """Applies a limit to the rows that have one."""
    return jnp.where(is_needed_B[:, None], cut(logits_BV, limit_B), logits_BV)


def choose(scores_BV: Array, settings: Settings, index_B: Array) -> Array:
    """Chooses the next token of each row, B: the likeliest, or with a temperature by drawing.

    `index_B` is the number of new tokens before it, which the random number depends on.
    """
    greedy_B = jnp.argmax(scores_BV, axis=-1)

    def draw() -> Array:
        keys_B = settings.keys(index_B)
        drawn_B = jax.vmap(jax.random.categorical)(keys_B, warp(scores_BV, settings))
        return jnp.where(settings.temperature_B > 0, drawn_B, greedy_B)

    is_drawn = (settings.temperature_B > 0).any()
    return jax.lax.cond(is_drawn, draw, lambda: greedy_B).astype(jnp.int32)


def _temperature(settings: Settings) -> Array:
    return jnp.where(settings.temperature_B > 0, settings.temperature_B, 1)


def _needs(text: Text, settings: Settings) -> tuple[Array, ...]:
    """Returns which rows need each of the stages, B."""
    is_first_B = text.lengths_B - text.starts_B <= 1
    is_last_B = text.lengths_B - text.starts_B == settings.limit_B - 1
    penalty_B = jnp.abs(settings.presence_penalty_B) + jnp.abs(settings.frequency_penalty_B)
    return (
        (settings.biased_BWL[:, :, -1:] >= 0).any((1, 2)),
        settings.repetition_penalty_B != 1,
        penalty_B > 0,
        settings.no_repeat_ngram_size_B > 0,
        settings.have(EOS) & _is_early(text, settings),
        settings.have(FORBIDDEN | SUPPRESSED)
        | (settings.have(BEGIN_SUPPRESSED) & is_first_B)
        | (settings.forced_bos_B >= 0)
        | (settings.have(FORCED_EOS) & is_last_B),
    )


def add_bias(scores_BV: Array, text: Text, settings: Settings) -> Array:
    """Adds the bias of each token that would complete one of the biased sequences."""
    (B, V), L = scores_BV.shape, settings.biased_BWL.shape[-1]
    places_BL = text.lengths_B[:, None] - L + 1 + jnp.arange(L - 1)
    ends_BL = jnp.take_along_axis(text.tokens_BS, jnp.maximum(places_BL, 0), axis=1)
    ends_BL = jnp.where(places_BL < 0, -2, ends_BL)  # before the text: equal to no token
    before_BWL = settings.biased_BWL[:, :, :-1]
    is_met_BW = ((before_BWL == ends_BL[:, None]) | (before_BWL < 0)).all(-1)
    last_BW = settings.biased_BWL[:, :, -1]
    bias_BW = jnp.where(is_met_BW & (last_BW >= 0), settings.bias_BW, 0)
    bias_BV = jnp.zeros((B, V)).at[jnp.arange(B)[:, None], jnp.maximum(last_BW, 0)].add(bias_BW)
    return scores_BV + bias_BV


def penalize_repetition(scores_BV: Array, text: Text, settings: Settings) -> Array:
    """Lowers the scores of the tokens in the text if the penalty is above 1, else raises them.

    Positive scores are divided by it, negative ones multiplied (Keskar et al., 2019).
    """
    penalty_B1 = settings.repetition_penalty_B[:, None]
    lowered_BV = jnp.where(scores_BV < 0, scores_BV * penalty_B1, scores_BV / penalty_B1)
    return jnp.where(text.occurrences(scores_BV.shape[-1]) > 0, lowered_BV, scores_BV)


def penalize_presence(scores_BV: Array, text: Text, settings: Settings) -> Array:
    """Subtracts penalties for the new tokens: one for each, one for each time that it occurs."""
    count_BV = text.occurrences(scores_BV.shape[-1], text.starts_B)
    scores_BV = scores_BV - settings.frequency_penalty_B[:, None] * count_BV
    return scores_BV - settings.presence_penalty_B[:, None] * (count_BV > 0)


def ban_repeated_ngrams(scores_BV: Array, text: Text, settings: Settings) -> Array:
    """Sets the tokens to -inf that would end an n-gram which already occurs in the text."""
    (B, S), V = text.tokens_BS.shape, scores_BV.shape[-1]
    n_B1, length_B1 = settings.no_repeat_ngram_size_B[:, None], text.lengths_B[:, None]
    n_B1 = jnp.minimum(n_B1, S + 1)  # longer ones do not fit into the text
    starts_BS = jnp.broadcast_to(jnp.arange(S)[None], (B, S))

    def compare(k: Array, is_same_BS: Array) -> Array:
        last_B1 = jnp.take_along_axis(
            text.tokens_BS, jnp.clip(length_B1 - n_B1 + 1 + k, 0, S - 1), axis=1
        )
        is_same = jnp.roll(text.tokens_BS, -k, axis=1) == last_B1
        return is_same_BS & (is_same | (k >= n_B1 - 1))

    is_same_BS = (starts_BS + n_B1 <= length_B1) & (n_B1 > 0)  # n-grams that are written in full
    is_same_BS = jax.lax.fori_loop(0, jnp.maximum(n_B1.max() - 1, 0), compare, is_same_BS)
    ends_BS = jnp.take_along_axis(text.tokens_BS, jnp.clip(starts_BS + n_B1 - 1, 0, S - 1), axis=1)
    ends_BS = jnp.where(is_same_BS, ends_BS, V)
    banned_BV = jnp.zeros((B, V), bool).at[jnp.arange(B)[:, None], ends_BS].set(True, mode="drop")
    return jnp.where(banned_BV, -jnp.inf, scores_BV)


def _is_early(text: Text, settings: Settings) -> Array:
    """Returns the rows that are too short to end, B."""
    is_short_B = text.lengths_B < settings.min_length_B
    return is_short_B | (text.lengths_B - text.starts_B < settings.min_new_tokens_B)


def delay_end(scores_BV: Array, text: Text, settings: Settings) -> Array:
    """Sets end-of-sequence tokens to -inf while a row is too short to end."""
    is_out_BV = _is_early(text, settings)[:, None] & settings.among(EOS)
    return jnp.where(is_out_BV, -jnp.inf, scores_BV)


def force_and_suppress(scores_BV: Array, text: Text, settings: Settings) -> Array:
    """Sets tokens that are not allowed to -inf; of forced tokens, which get 0, all others."""
    V, new_B = scores_BV.shape[-1], text.lengths_B - text.starts_B
    scores_BV = jnp.where(settings.among(FORBIDDEN), -jnp.inf, scores_BV)
    bos_B = settings.forced_bos_B
    forces_bos_B = (bos_B >= 0) & (text.lengths_B == 1)
    only_BV = jnp.where(jnp.arange(V) == bos_B[:, None], 0.0, -jnp.inf)
    scores_BV = jnp.where(forces_bos_B[:, None], only_BV, scores_BV)
    forces_eos_B = settings.have(FORCED_EOS) & (new_B == settings.limit_B - 1)
    only_BV = jnp.where(settings.among(FORCED_EOS), 0.0, -jnp.inf)
    scores_BV = jnp.where(forces_eos_B[:, None], only_BV, scores_BV)
    scores_BV = jnp.where(settings.among(SUPPRESSED), -jnp.inf, scores_BV)
    begin_B = jnp.where((bos_B >= 0) & (text.starts_B == 1), 1, 0)  # a forced token comes before
    is_out_BV = (new_B == begin_B)[:, None] & settings.among(BEGIN_SUPPRESSED)
    return jnp.where(is_out_BV, -jnp.inf, scores_BV)


STAGES: tuple[Stage, ...] = (
    add_bias,
    penalize_repetition,
    penalize_presence,
    ban_repeated_ngrams,
    delay_end,
    force_and_suppress,
)
