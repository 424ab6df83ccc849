"""Beam search: the most likely continuation found by following several candidates at once."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from jaxllm.errors import UserError
from jaxllm.models import Model, TokenModel, with_scanned_layers
from jaxllm.sharding import to_host

from .decode import (
    NO_RULES,
    bucket_size,
    check_prompts,
    check_token_model,
    cut_rows,
    pad_prompts,
)
from .incremental import decode_step, prefill
from .rules import TokenRules, Written
from .sampling import check_repetition_penalty, penalize_repetition

NEVER = -1e9  # the score of an impossible candidate, below that of any real one


def beam_search(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    num_beams: int,
    length_penalty: float = 1.0,
    repetition_penalty: float = 1.0,
    rules: TokenRules = NO_RULES,
    eos_ids: Sequence[int] = (),
) -> list[list[int]]:
    """Continues each prompt by beam search, as `generate` of transformers does.

    A continuation of n tokens scores its log-probability divided by `n ** length_penalty`. A row
    ends when its best live beam, scored at its current length, is worse than its worst finished
    one. Rows do not affect each other.

    Args:
        model: scanned layers are unstacked first.
        prompts: token ids, of any lengths.
        max_new_tokens: maximum number of tokens to return for a prompt.
        num_beams: number of continuations kept at each step; 1 is greedy decoding.
        length_penalty: values above 0 favor long continuations.
        repetition_penalty: applied to the log-probabilities of tokens that are already in the
            prompt or the beam; above 1 makes them less likely.
        rules: tokens that are forced or suppressed.
        eos_ids: end-of-sequence tokens.

    Returns:
        The best continuation of each prompt, up to and including its first end-of-sequence token.

    Raises:
        UserError: `prompts` is no list of lists of token ids, no prompts, an empty one, an unknown
            token, fewer than one new token or beam, a vocabulary too small for the candidates of a
            step, a penalty that is not positive, too many positions, or a model without tokens.
        NonFiniteError: logits are NaN, so that no token can be chosen.
    """
    model = check_token_model(model)
    check_prompts(model, prompts, max_new_tokens)
    check_repetition_penalty(repetition_penalty)
    rules.check(model.config.vocab_size)
    num_candidates = _count_candidates(num_beams, len(set(eos_ids)), model.config.vocab_size)
    tokens, lengths = pad_prompts(prompts)
    graphdef, state = nnx.split(with_scanned_layers(model, False))
    out = _search(
        graphdef,
        (num_beams, num_candidates, bucket_size(max_new_tokens)),
        rules,
        nnx.to_pure_dict(state),
        tokens,
        lengths,
        SearchSettings(
            limit=np.int32(max_new_tokens),
            length_penalty=np.float32(length_penalty),
            repetition_penalty=np.float32(repetition_penalty),
            eos_ids=np.array(sorted(set(eos_ids)), np.int32),
        ),
    )
    tokens_BR, is_finite_B = map(to_host, out)
    return cut_rows(tokens_BR[:, :max_new_tokens], is_finite_B, set(eos_ids))


def _count_candidates(num_beams: int, num_eos: int, vocab_size: int) -> int:
    """Returns the number of candidates per step, for both live and finished beams.

    Enough to continue every beam remain even if all end-of-sequence tokens are candidates. Raises
    UserError for fewer than one beam, more than int32 can index, or a vocabulary that is too small.
    """
    if num_beams < 1:
        raise UserError(f"num_beams={num_beams} is less than 1")
    if num_beams * vocab_size >= 2**31:
        raise UserError(
            f"num_beams={num_beams} times vocab_size={vocab_size} is not less than 2**31: use "
            "fewer beams"
        )
    count = max(2, 1 + num_eos) * num_beams
    if count > num_beams * vocab_size:
        raise UserError(
            f"num_beams={num_beams} with {num_eos} eos_ids needs {count} candidates per step, more "
            f"than num_beams times vocab_size={vocab_size}"
        )
    return count


class Beams(NamedTuple):
    """State of the search: W live and W finished beams for each of B rows, of R tokens each."""

    live_BWR: Array
    live_score_BW: Array  # summed log-probabilities
    done_BWR: Array
    done_score_BW: Array  # summed log-probabilities / length ** length_penalty
    is_done_BW: Array  # whether a finished beam has been found for this place
    can_improve_B: Array  # whether a live beam may still beat a finished one

    @classmethod
    def init(cls, B: int, W: int, R: int) -> "Beams":
        """Returns the initial beams; only the first may continue, as all hold the same prompt."""
        tokens_BWR = jnp.zeros((B, W, R), jnp.int32)
        return cls(
            tokens_BWR,
            jnp.full((B, W), NEVER).at[:, 0].set(0.0),
            tokens_BWR,
            jnp.full((B, W), NEVER),
            jnp.zeros((B, W), bool),
            jnp.ones(B, bool),
        )


class SearchSettings(NamedTuple):
    """Scoring settings of a search, and its end-of-sequence tokens."""

    limit: ArrayLike  # most tokens of a continuation
    length_penalty: ArrayLike
    repetition_penalty: ArrayLike
    eos_ids: ArrayLike

    def normalize(self, score: Array, num_tokens: Array) -> Array:
        """Divides summed log-probabilities by `num_tokens ** length_penalty`."""
        return score / num_tokens**self.length_penalty


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _search(
    graphdef: nnx.GraphDef,
    sizes: tuple[int, int, int],
    rules: TokenRules,
    params: dict,
    tokens_BT: Array,
    lengths_B: Array,
    settings: SearchSettings,
) -> tuple[Array, Array]:
    """Returns the best continuation of each row, BR, and whether no logits were NaN, B.

    `sizes` are the number of beams W, the number of candidates per step, and R, the tokens that
    each beam has room for.
    """
    whole: TokenModel = nnx.merge(graphdef, nnx.State(params))
    W, num_candidates, R = sizes
    B = tokens_BT.shape[0]
    start = prefill(whole, tokens_BT, lengths_B, R).repeat_rows(W)

    def unembed(x_BD: Array) -> Array:
        return start.model.unembed(x_BD[:, None]).reshape(B, W, -1)

    def is_running(carry: tuple) -> Array:
        i, beams, *_ = carry
        return (i < settings.limit) & beams.can_improve_B.any()

    def step(carry: tuple) -> tuple:
        i, beams, logits_BWV, seen_BV, cache = carry
        log_probs_BV = jax.nn.log_softmax(logits_BWV).reshape(B * W, -1)
        log_probs_BV = penalize_repetition(log_probs_BV, seen_BV, settings.repetition_penalty)
        written = Written(start.tokens_BT, start.lengths_B, beams.live_BWR.reshape(B * W, R), i)
        log_probs_BV = rules(log_probs_BV, written, limit=settings.limit, eos_ids=settings.eos_ids)
        # A candidate that no rule allows has the score of an impossible one, which is finite.
        log_probs_BWV = jnp.maximum(log_probs_BV, NEVER).reshape(B, W, -1)
        scores_BWV = log_probs_BWV + beams.live_score_BW[..., None]
        beams, parents_BW = _extend(beams, scores_BWV, i, settings, num_candidates)
        rows = (jnp.arange(B)[:, None] * W + parents_BW).reshape(-1)
        seen_BV, cache = jax.tree.map(lambda x: x[rows], (seen_BV, cache))
        new_BR = beams.live_BWR.reshape(-1, R)
        seen_BV = seen_BV.at[jnp.arange(B * W), new_BR[:, i]].set(True)
        x_BD, cache = decode_step(start, cache, new_BR, i)
        return i + 1, beams, unembed(x_BD), seen_BV, cache

    carry = (
        jnp.int32(0),
        Beams.init(B, W, R),
        unembed(start.x_BD),
        start.seen_tokens(),
        start.cache,
    )
    beams = jax.lax.while_loop(is_running, step, carry)[1]
    is_nan_BW = jnp.isnan(beams.done_score_BW) | jnp.isnan(beams.live_score_BW)
    return beams.done_BWR[:, 0], ~is_nan_BW.any(1)


def _extend(
    beams: Beams, scores_BWV: Array, i: Array, settings: SearchSettings, num_candidates: int
) -> tuple[Beams, Array]:
    """Extends the beams by token `i`.

    Returns:
        The new beams, and the index of the old beam that each live one continues, BW.
    """
    B, W, V = scores_BWV.shape
    score_BK, flat_BK = jax.lax.top_k(scores_BWV.reshape(B, -1), num_candidates)
    parent_BK, token_BK = flat_BK // V, flat_BK % V
    candidate_BKR = _pick(beams.live_BWR, parent_BK).at[:, :, i].set(token_BK)
    ends_BK = jnp.isin(token_BK, settings.eos_ids) | (i + 1 == settings.limit)
    live_score_BW, best_BW = jax.lax.top_k(score_BK + NEVER * ends_BK, W)
    # As in transformers, a candidate can finish only if it is among the best W.
    finishes_BK = ends_BK & (jnp.arange(num_candidates) < W) & beams.can_improve_B[:, None]
    done_score_BK = jnp.where(finishes_BK, settings.normalize(score_BK, i + 1.0), NEVER)
    beams = _finish(beams, candidate_BKR, done_score_BK, finishes_BK)
    attainable_B = settings.normalize(live_score_BW[:, 0], i + 1.0)
    worst_BW = jnp.where(beams.is_done_BW, beams.done_score_BW.min(1, keepdims=True), NEVER)
    beams = beams._replace(
        live_BWR=_pick(candidate_BKR, best_BW),
        live_score_BW=live_score_BW,
        can_improve_B=beams.can_improve_B & (attainable_B[:, None] > worst_BW).any(1),
    )
    return beams, _pick(parent_BK, best_BW)


def _finish(beams: Beams, candidate_BKR: Array, score_BK: Array, is_done_BK: Array) -> Beams:
    """Keeps the best W finished continuations, old and new."""
    W = beams.done_score_BW.shape[1]
    score, tokens, is_done = (
        jnp.concatenate(pair, axis=1)
        for pair in (
            (beams.done_score_BW, score_BK),
            (beams.done_BWR, candidate_BKR),
            (beams.is_done_BW, is_done_BK),
        )
    )
    done_score_BW, best_BW = jax.lax.top_k(score, W)
    return beams._replace(
        done_BWR=_pick(tokens, best_BW),
        done_score_BW=done_score_BW,
        is_done_BW=_pick(is_done, best_BW),
    )


def _pick(x_BW: Array, index_BK: Array) -> Array:
    """Returns `x[b, index[b, k]]` for every b and k."""
    return jax.vmap(lambda row, index: row[index])(x_BW, index_BK)
