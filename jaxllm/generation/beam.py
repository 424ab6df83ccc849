"""Beam search: the likeliest of many continuations, rather than the likeliest next token."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxllm.errors import UserError
from jaxllm.models import Model, TokenModel, with_scanned_layers
from jaxllm.sharding import to_host

from .decode import bucket_size, check_prompts, check_token_model, cut_at_end, pad_prompts
from .incremental import decode_step, prefill
from .sampling import check_repetition_penalty, penalize_repetition

NEVER = -1e9  # a score that nothing else has


def beam_search(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    num_beams: int,
    length_penalty: float = 1.0,
    repetition_penalty: float = 1.0,
    eos_ids: Sequence[int] = (),
) -> list[list[int]]:
    """The best continuation of each prompt that was found, up to and with the first of `eos_ids`.

    The algorithm is that of transformers' `generate`, and so are its choices: a continuation of n
    tokens scores its log-probability over `n ** length_penalty`, and a row ends when its best live
    beam, at its present length, scores less than its worst finished one. Rows do not affect each
    other.

    Args:
        model: if its layers are scanned they are unstacked first.
        prompts: token ids, of any lengths.
        max_new_tokens: the most tokens to return for a prompt.
        num_beams: continuations that are kept at each step; 1 is greedy.
        length_penalty: above 0 favours long continuations.
        repetition_penalty: of the log-probabilities of tokens that are in the prompt or the beam.
        eos_ids: tokens that end a text.

    Raises:
        UserError: no prompt, an empty one, an unknown token, fewer than one new token or beam,
            more beams than the vocabulary has first tokens for, or a penalty that is not positive.
    """
    model = check_token_model(model)
    check_prompts(model, prompts, max_new_tokens)
    check_repetition_penalty(repetition_penalty)
    kept = max(2, 1 + len(set(eos_ids))) * num_beams
    if num_beams < 1 or kept > num_beams * model.config.vocab_size:
        raise UserError(
            f"num_beams={num_beams} is not from 1 up, with {kept} candidates at most as many as "
            f"{num_beams} times vocab_size={model.config.vocab_size}"
        )
    tokens, lengths = pad_prompts(prompts)
    graphdef, state = nnx.split(with_scanned_layers(model, False))
    out = _search(
        graphdef,
        (num_beams, kept, bucket_size(max_new_tokens)),
        nnx.to_pure_dict(state),
        tokens,
        lengths,
        np.int32(max_new_tokens),
        np.float32(length_penalty),
        np.float32(repetition_penalty),
        np.array(sorted(set(eos_ids)), np.int32),
    )
    return [cut_at_end(row[:max_new_tokens].tolist(), set(eos_ids)) for row in to_host(out)]


class Beams(NamedTuple):
    """The search of B rows by W beams, each of room R."""

    live_BWR: Array
    live_score_BW: Array  # summed log-probabilities
    done_BWR: Array
    done_score_BW: Array  # divided by a power of the length
    is_done_BW: Array
    can_improve_B: Array

    @classmethod
    def init(cls, B: int, W: int, R: int) -> "Beams":
        """Beams of which only the first counts: all of them begin with the same prompt."""
        tokens_BWR = jnp.zeros((B, W, R), jnp.int32)
        return cls(
            tokens_BWR,
            jnp.full((B, W), NEVER).at[:, 0].set(0.0),
            tokens_BWR,
            jnp.full((B, W), NEVER),
            jnp.zeros((B, W), bool),
            jnp.ones(B, bool),
        )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _search(
    graphdef: nnx.GraphDef,
    sizes: tuple[int, int, int],
    params: dict,
    tokens_BT: Array,
    lengths_B: Array,
    limit: Array,
    length_penalty: Array,
    repetition_penalty: Array,
    eos_ids: Array,
) -> Array:
    """The best continuations, BR, of which `limit` tokens are asked for."""
    whole: TokenModel = nnx.merge(graphdef, nnx.State(params))
    W, kept, R = sizes
    B = tokens_BT.shape[0]
    start = prefill(whole, tokens_BT, lengths_B, R).repeat_rows(W)
    V = start.model.config.vocab_size

    def unembed(x_BD: Array) -> Array:
        return start.model.unembed(x_BD[:, None]).reshape(B, W, V)

    def is_going(carry: tuple) -> Array:
        i, beams, *_ = carry
        return (i < limit) & beams.can_improve_B.any()

    def step(carry: tuple) -> tuple:
        i, beams, logits_BWV, seen_BV, cache = carry
        beams, parents_BW = lengthen(i, beams, logits_BWV, seen_BV)
        rows = (jnp.arange(B)[:, None] * W + parents_BW).reshape(-1)
        seen_BV, cache = jax.tree.map(lambda x: x[rows], (seen_BV, cache))
        new_BR = beams.live_BWR.reshape(-1, R)
        seen_BV = seen_BV.at[jnp.arange(B * W), new_BR[:, i]].set(True)
        x_BD, cache = decode_step(start, cache, new_BR, i)
        return i + 1, beams, unembed(x_BD), seen_BV, cache

    def lengthen(i: Array, beams: Beams, logits_BWV: Array, seen_BV: Array) -> tuple[Beams, Array]:
        """The beams one token longer, and which of the old ones each live one continues."""
        log_probs_BWV = jax.nn.log_softmax(logits_BWV)
        log_probs_BWV = penalize_repetition(
            log_probs_BWV, seen_BV.reshape(B, W, V), repetition_penalty
        )
        scores_BWV = log_probs_BWV + beams.live_score_BW[..., None]
        score_BK, flat_BK = jax.lax.top_k(scores_BWV.reshape(B, -1), kept)
        parent_BK, token_BK = flat_BK // V, flat_BK % V
        candidate_BKR = _pick(beams.live_BWR, parent_BK).at[:, :, i].set(token_BK)
        ends_BK = jnp.isin(token_BK, eos_ids) | (i + 1 == limit)
        live_score_BW, best_BW = jax.lax.top_k(score_BK + NEVER * ends_BK, W)
        finishes_BK = ends_BK & (jnp.arange(kept) < W) & beams.can_improve_B[:, None]
        normal_BK = score_BK / (i + 1.0) ** length_penalty
        beams = _finish(beams, candidate_BKR, jnp.where(finishes_BK, normal_BK, NEVER), finishes_BK)
        attainable_B = live_score_BW[:, 0] / (i + 1.0) ** length_penalty
        worst_BW = jnp.where(beams.is_done_BW, beams.done_score_BW.min(1, keepdims=True), NEVER)
        beams = beams._replace(
            live_BWR=_pick(candidate_BKR, best_BW),
            live_score_BW=live_score_BW,
            can_improve_B=beams.can_improve_B & (attainable_B[:, None] > worst_BW).any(1),
        )
        return beams, _pick(parent_BK, best_BW)

    carry = (
        jnp.int32(0),
        Beams.init(B, W, R),
        unembed(start.x_BD),
        start.seen_tokens(),
        start.cache,
    )
    return jax.lax.while_loop(is_going, step, carry)[1].done_BWR[:, 0]


def _finish(beams: Beams, candidate_BKR: Array, score_BK: Array, is_done_BK: Array) -> Beams:
    """The beams with the best of the finished continuations, old and new."""
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
    """`x[b, index[b, k]]` for every b and k."""
    return jax.vmap(lambda row, index: row[index])(x_BW, index_BK)
