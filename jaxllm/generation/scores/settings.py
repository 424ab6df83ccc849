"""The settings of all rows as arrays, so that one compiled program serves any mix of them."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxllm.generation.rules import TokenRules
from jaxllm.generation.sampling import Sampling

from .processors import (
    BEGIN_SUPPRESSED,
    EOS,
    FORBIDDEN,
    FORCED_EOS,
    STOP,
    SUPPRESSED,
    Settings,
    warp,
)

NO_RULES = TokenRules()
NO_LIMIT = 2**31 - 1


def stack_settings(
    vocab_size: int,
    samplings: Sequence[Sampling],
    rules: Sequence[TokenRules] = (),
    *,
    limits: Sequence[int] = (),
    seeds: Sequence[tuple[int, int]] = (),
    eos_ids: Sequence[int] = (),
    stop_ids: Sequence[int] = (),
) -> Settings:
    """Stacks the settings of each row.

    Args:
        vocab_size: the number of tokens to choose from.
        samplings: of each row.
        rules: of each row.
        limits: the most new tokens of each row.
        seeds: a seed and a number of each row, from which its random numbers are drawn.
        eos_ids: end-of-sequence tokens, which the rules know.
        stop_ids: other tokens that end a text.
    """
    B = len(samplings)
    rules = rules or [NO_RULES] * B
    sets = _token_sets(vocab_size, rules, eos_ids, stop_ids)
    biased, bias = _biased(rules, tuple(eos_ids))
    number = lambda name: np.array([getattr(s, name) for s in samplings], np.float32)  # noqa: E731
    part = lambda name: np.array([getattr(s, name) or 1.0 for s in samplings], np.float32)  # noqa: E731
    whole = lambda name: np.array([min(getattr(r, name), NO_LIMIT) for r in rules], np.int32)  # noqa: E731
    top_k = [min(s.top_k or vocab_size, vocab_size) for s in samplings]
    forced_bos = [-1 if r.forced_bos is None else r.forced_bos for r in rules]
    arrays: dict[str, Any] = dict(
        **{f"{name}_penalty_B": number(f"{name}_penalty") for name in PENALTIES},
        temperature_B=number("temperature"),
        top_k_B=np.array(top_k, np.int32),
        top_p_B=part("top_p"),
        min_p_B=number("min_p"),
        typical_p_B=part("typical_p"),
        epsilon_cutoff_B=number("epsilon_cutoff"),
        eta_cutoff_B=number("eta_cutoff"),
        no_repeat_ngram_size_B=whole("no_repeat_ngram_size"),
        min_length_B=whole("min_length"),
        min_new_tokens_B=whole("min_new_tokens"),
        forced_bos_B=np.array(forced_bos, np.int32),
        sets_BV=sets,
        has_B=np.bitwise_or.reduce(sets, axis=1),
        biased_BWL=biased,
        bias_BW=bias,
        limit_B=np.array(limits or [NO_LIMIT] * B, np.int32),
        seeds_B2=np.array(seeds or [(0, 0)] * B, np.uint32),
    )
    return Settings(**arrays)


def filter_logits(sampling: Sampling, logits_BV: Array) -> Array:
    """Divides logits by the temperature; sets tokens outside the limits to -inf. BV."""
    B, V = logits_BV.shape
    return warp(jnp.asarray(logits_BV), stack_settings(V, [sampling] * B))


PENALTIES = ("repetition", "presence", "frequency")


def _token_sets(
    vocab_size: int, rules: Sequence[TokenRules], eos_ids: Sequence[int], stop_ids: Sequence[int]
) -> np.ndarray:
    """Returns the sets that each token belongs to, BV, as bits; ids outside are left out."""
    sets = np.zeros((len(rules), vocab_size), np.uint8)
    for row, own in zip(sets, rules, strict=True):
        for bit, ids in (
            (EOS, eos_ids),
            (STOP, stop_ids),
            (SUPPRESSED, own.suppress),
            (BEGIN_SUPPRESSED, own.begin_suppress),
            (FORCED_EOS, own.forced_eos),
        ):
            row[[token for token in ids if 0 <= token < vocab_size]] |= bit
        if own.allowed:
            row[np.setdiff1d(np.arange(vocab_size), own.allowed)] |= FORBIDDEN
    return sets


def _biased(rules: Sequence[TokenRules], eos_ids: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sequences with a bias, BWL, and their bias, BW.

    W and L are powers of two, so that few sizes need compiling.
    """
    own = [list(one.biased_sequences(eos_ids).items()) for one in rules]
    W = _power_of_two(max(map(len, own)))
    L = _power_of_two(max((len(tokens) for rows in own for tokens, _ in rows), default=1))
    tokens_BWL = np.full((len(rules), W, L), -1, np.int32)
    bias_BW = np.zeros((len(rules), W), np.float32)
    for row, sequences in enumerate(own):
        for w, (tokens, bias) in enumerate(sequences):
            tokens_BWL[row, w, L - len(tokens) :] = tokens
            bias_BW[row, w] = bias
    return tokens_BWL, bias_BW


def with_room(settings: Settings, num_sequences: int, length: int) -> Settings:
    """Returns the settings with room for so many sequences with a bias, of this length."""
    _, W, L = settings.biased_BWL.shape
    if (num_sequences, length) == (W, L):
        return settings
    missing = (0, num_sequences - W)
    padding = ((0, 0), missing, (length - L, 0))
    return settings._replace(
        biased_BWL=jnp.pad(settings.biased_BWL, padding, constant_values=-1),
        bias_BW=jnp.pad(settings.bias_BW, ((0, 0), missing)),
    )


def _power_of_two(size: int) -> int:
    return 1 << (max(size, 1) - 1).bit_length()
