"""Beam search: the most likely continuation found by following several candidates at once."""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from jaxllm.errors import UserError
from jaxllm.models import Model, TokenModel
from jaxllm.sharding import to_host

from .continuation import Continuation, check_finite
from .decode import NO_RULES
from .incremental import decode_step, prefill
from .prompts import batch_size, bucket_size, check_prompts, check_token_model, pad_prompts
from .rules import TokenRules
from .sampling import Sampling
from .scores.processors import EOS, Settings, process
from .scores.settings import stack_settings
from .weights import decoding_weights

EarlyStopping = bool | Literal["never"]
EARLY_STOPPING: tuple[EarlyStopping, ...] = (False, True, "never")
AS_SOON_AS_FULL, NEVER_EARLY = 1, 2
NEVER = -1e9  # the score of an impossible candidate, below that of any real one


def beam_search(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    num_beams: int,
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
    num_return_sequences: int = 1,
    repetition_penalty: float = 1.0,
    rules: TokenRules = NO_RULES,
    eos_ids: Sequence[int] = (),
) -> list[Continuation]:
    """Continues each prompt by beam search, as `generate` of transformers does.

    A continuation of n tokens scores its log-probability divided by `n ** length_penalty`.

    Args:
        model: the layers may be scanned or not.
        prompts: token ids, of any lengths.
        max_new_tokens: maximum number of tokens to return for a prompt.
        num_beams: number of continuations kept at each step; 1 is greedy decoding.
        length_penalty: values above 0 favor long continuations.
        early_stopping: when a row ends. False: when its best live beam, scored at its current
            length, is worse than its worst finished one; "never": if scored at the length that
            is best for it; True: once there are `num_beams` finished ones.
        num_return_sequences: number of continuations to return for each prompt.
        repetition_penalty: above 1, tokens of the prompt and the beam become less likely.
        rules: tokens that are forced or suppressed.
        eos_ids: end-of-sequence tokens.

    Returns:
        The best continuations of each prompt, up to and including the first end-of-sequence token.
        Several of a prompt are adjacent, the best one first.

    Raises:
        UserError: an argument is not valid, or the model cannot generate so many tokens.
        NonFiniteError: logits are NaN.
    """
    model = check_token_model(model)
    check_prompts(model, prompts, max_new_tokens)
    num_candidates = _check_beams(model, num_beams, num_return_sequences, early_stopping, eos_ids)
    rules.check(model.config.vocab_size)
    tokens, lengths = pad_prompts([*prompts, *[[0]] * (batch_size(len(prompts)) - len(prompts))])
    B, V = len(lengths), model.config.vocab_size
    settings = SearchSettings(
        length_penalty=np.float32(length_penalty),
        early_stopping=np.int32(EARLY_STOPPING.index(early_stopping)),
        is_used_B=np.arange(B) < len(prompts),
        rows=_same(B * num_beams, V, repetition_penalty, rules, max_new_tokens, eos_ids),
    )
    sizes = num_beams, num_candidates, bucket_size(max_new_tokens)
    graphdef, params = decoding_weights(model)
    out = _search(graphdef, sizes, params, tokens, lengths, settings)
    tokens_BWR, is_finite_B = (to_host(x)[: len(prompts)] for x in out)
    check_finite(is_finite_B)
    found_BWR = tokens_BWR[:, :num_return_sequences, :max_new_tokens]
    return [_cut_at_end(row.tolist(), set(eos_ids)) for rows in found_BWR for row in rows]


def _same(
    rows: int, vocab_size: int, penalty: float, rules: TokenRules, limit: int, ends: Sequence[int]
) -> Settings:
    """Returns settings that are the same for all rows."""
    samplings = [Sampling(repetition_penalty=penalty)] * rows
    return stack_settings(
        vocab_size, samplings, [rules] * rows, limits=[limit] * rows, eos_ids=ends
    )


def _cut_at_end(tokens: list[int], eos_ids: set[int]) -> Continuation:
    """Returns the tokens up to and including the first end-of-sequence token."""
    end = next((place + 1 for place, token in enumerate(tokens) if token in eos_ids), None)
    return Continuation(tokens[:end], "length" if end is None else "eos")


def _check_beams(
    model: TokenModel,
    num_beams: int,
    num_return_sequences: int,
    early_stopping: EarlyStopping,
    eos_ids: Sequence[int],
) -> int:
    """Returns the number of candidates per step. Raises UserError for settings out of range."""
    if early_stopping not in EARLY_STOPPING:
        raise UserError(f'early_stopping={early_stopping!r} is none of False, True and "never"')
    count = _count_candidates(num_beams, len(set(eos_ids)), model.config.vocab_size)
    if not 1 <= num_return_sequences <= num_beams:
        raise UserError(
            f"num_return_sequences={num_return_sequences} is not from 1 to num_beams={num_beams}"
        )
    return count


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
    # More candidates change nothing, and few numbers of them need compiling.
    rounded = min(1 << num_eos.bit_length(), vocab_size) * num_beams
    if count > num_beams * vocab_size:
        raise UserError(
            f"num_beams={num_beams} with {num_eos} eos_ids needs {count} candidates per step, more "
            f"than num_beams times vocab_size={vocab_size}"
        )
    return max(count, rounded)


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
    """Settings of a search, and those of the processors for each beam."""

    length_penalty: ArrayLike
    early_stopping: ArrayLike  # the index in `EARLY_STOPPING`
    is_used_B: ArrayLike  # False for rows that only fill up the batch
    rows: Settings

    @property
    def limit(self) -> Array:
        """The most tokens of a continuation."""
        return jnp.asarray(self.rows.limit_B)[0]

    def normalize(self, score: Array, num_tokens: Array) -> Array:
        """Divides summed log-probabilities by `num_tokens ** length_penalty`."""
        return score / num_tokens**self.length_penalty

    def best_length(self, num_tokens: Array) -> Array:
        """Returns the length at which live beams of `num_tokens` are scored, to end the search."""
        is_later = (self.early_stopping == NEVER_EARLY) & (jnp.asarray(self.length_penalty) > 0)
        return jnp.where(is_later, self.limit.astype(jnp.float32), num_tokens)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _search(
    graphdef: nnx.GraphDef,
    sizes: tuple[int, int, int],
    params: dict,
    tokens_BT: Array,
    lengths_B: Array,
    settings: SearchSettings,
) -> tuple[Array, Array]:
    """Returns the best continuations of each row, BWR, and whether no logits were NaN, B.

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
        i, beams, logits_BWV, cache = carry
        log_probs_BV = jax.nn.log_softmax(logits_BWV).reshape(B * W, -1)
        text = start.text(beams.live_BWR.reshape(B * W, R), i)
        log_probs_BV = process(log_probs_BV, text, settings.rows)
        # A candidate that no rule allows has the score of an impossible one, which is finite.
        log_probs_BWV = jnp.maximum(log_probs_BV, NEVER).reshape(B, W, -1)
        scores_BWV = log_probs_BWV + beams.live_score_BW[..., None]
        beams, parents_BW = _extend(beams, scores_BWV, i, settings, num_candidates)
        rows = (jnp.arange(B)[:, None] * W + parents_BW).reshape(-1)
        cache = jax.tree.map(lambda x: x[rows], cache)
        text = start.text(beams.live_BWR.reshape(B * W, R), i + 1)
        x_BD, cache = decode_step(start.model, cache, text)
        return i + 1, beams, unembed(x_BD), cache

    beams = Beams.init(B, W, R)._replace(can_improve_B=jnp.asarray(settings.is_used_B))
    carry = (jnp.int32(0), beams, unembed(start.x_BD), start.cache)
    beams = jax.lax.while_loop(is_running, step, carry)[1]
    is_nan_BW = jnp.isnan(beams.done_score_BW) | jnp.isnan(beams.live_score_BW)
    return beams.done_BWR, ~is_nan_BW.any(1)


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
    is_eos_V = settings.rows.among(EOS)[0]  # the same in all rows
    ends_BK = is_eos_V[token_BK] | (i + 1 == settings.limit)
    live_score_BW, best_BW = jax.lax.top_k(score_BK + NEVER * ends_BK, W)
    # As in transformers, a candidate can finish only if it is among the best W.
    finishes_BK = ends_BK & (jnp.arange(num_candidates) < W) & beams.can_improve_B[:, None]
    done_score_BK = jnp.where(finishes_BK, settings.normalize(score_BK, i + 1.0), NEVER)
    beams = _finish(beams, candidate_BKR, done_score_BK, finishes_BK)
    attainable_B = settings.normalize(live_score_BW[:, 0], settings.best_length(i + 1.0))
    is_full_B = beams.is_done_BW.all(1) & (settings.early_stopping == AS_SOON_AS_FULL)
    worst_BW = jnp.where(beams.is_done_BW, beams.done_score_BW.min(1, keepdims=True), NEVER)
    beams = beams._replace(
        live_BWR=_pick(candidate_BKR, best_BW),
        live_score_BW=live_score_BW,
        can_improve_B=beams.can_improve_B & (attainable_B[:, None] > worst_BW).any(1) & ~is_full_B,
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
