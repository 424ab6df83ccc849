"""Speculative decoding: a small model proposes tokens, which the large one reads together.

Leviathan et al., 2023, "Fast Inference from Transformers via Speculative Decoding", algorithm 1.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxllm.errors import UserError
from jaxllm.layers.attention.cache import Caches
from jaxllm.layers.context import Context
from jaxllm.layers.vision import MaskedEmbedding
from jaxllm.models import Decoder, EncoderDecoder, Model, TokenModel

from .incremental import prefill
from .loop import AT_LIMIT, IN_LOOPS, NO_TOKEN, RUNNING, Drafting, Program, Progress, add_token
from .prompts import check_prompts, check_token_model
from .scores.processors import Settings, Text, warp

# What the random numbers of one new token are for.
PROPOSE, ACCEPT, REPLACE = range(3)
Params = tuple[dict, dict]  # of the model, and of the draft model


class Pair(NamedTuple):
    """A model, the draft model that proposes tokens to it, and how many at a time."""

    target: Program
    draft: Program
    num_tokens: int

    def decoders(self, params: Params) -> tuple[Decoder, Decoder]:
        """Returns the models with these weights; of encoder-decoders, their decoders."""
        models = self.target.model(params[0]), self.draft.model(params[1])
        own, drafting = (m.decoder if isinstance(m, EncoderDecoder) else m for m in models)
        return own, drafting


class Proposals(NamedTuple):
    """The tokens that a draft model proposes after each text, and what it drew them from."""

    tokens_JB: Array
    probs_JBV: Array


def check_draft(
    model: TokenModel,
    draft: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    num_draft_tokens: int,
) -> TokenModel:
    """Returns the draft model. Raises UserError if it cannot propose tokens to the model."""
    if num_draft_tokens < 1:
        raise UserError(f"num_draft_tokens={num_draft_tokens} is less than 1")
    draft = check_token_model(draft)
    if type(draft) is not type(model):
        raise UserError(
            f"the draft is a {type(draft).__name__} and the model a {type(model).__name__}: they "
            "must read the same prompts"
        )
    if draft.config.vocab_size != model.config.vocab_size:
        raise UserError(
            f"the draft's vocab_size={draft.config.vocab_size} is not the model's "
            f"{model.config.vocab_size}: they must have the same vocabulary"
        )
    tokens = [m.config.start_token for m in (draft, model) if isinstance(m, EncoderDecoder)]
    if len(set(tokens)) > 1:
        raise UserError(f"the draft's start_token={tokens[0]} is not the model's {tokens[1]}")
    try:
        check_prompts(draft, prompts, max_new_tokens)
    except UserError as error:
        raise UserError(f"the draft cannot follow: {error}") from error
    longest = max(map(len, prompts)) + max_new_tokens
    _check_reversible(model, "model", longest)
    _check_reversible(draft, "draft", longest)
    return draft


def _check_reversible(model: TokenModel, name: str, longest: int) -> None:
    """Raises UserError if tokens of texts of up to `longest` cannot be taken back."""
    config = model.decoder.config if isinstance(model, EncoderDecoder) else model.config
    if config.attention.delta is not None:
        raise UserError(
            f"the {name} has layers of gated DeltaNet, whose state keeps the tokens that are not "
            "accepted: generate without a draft"
        )
    scaling = config.rope.scaling
    if scaling is None or scaling.kind not in ("dynamic", "longrope"):
        return
    if longest > (limit := scaling.original_max_len):
        raise UserError(
            f"texts of {longest} tokens are longer than original_max_len={limit}, where the "
            f"frequencies of {scaling.kind} RoPE change: generate them without a draft"
        )


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=IN_LOOPS)
def begin(
    pair: Pair,
    room: int,
    params: Params,
    tokens_BT: Array,
    lengths_B: Array,
    settings: Settings,
    rounds: Array,
    image: MaskedEmbedding | None = None,
) -> Progress:
    """Reads the prompts with both models and generates for `rounds`; see `loop.begin`.

    The caches hold each text but for its last token, which the next round reads (again). The draft
    model does not see images.
    """
    start, ahead = (
        prefill(one.model(own), tokens_BT, lengths_B, room, one.cache_dtype, pair.num_tokens, seen)
        for one, own, seen in zip(pair[:2], params, (image, None), strict=True)
    )
    text = start.text(jnp.zeros((len(lengths_B), room), jnp.int32), jnp.int32(0))
    ended_B = jnp.where(settings.limit_B > 0, RUNNING, AT_LIMIT).astype(jnp.int32)
    drafting = Drafting(ahead.cache, jnp.zeros_like(ended_B), jnp.zeros_like(ended_B))
    no_probs_BS = jnp.zeros(text.tokens_BS.shape)
    progress = Progress(text, start.x_BD, start.cache, no_probs_BS, ended_B, drafting)
    return _loop(pair, params, progress, settings, rounds)


@functools.partial(jax.jit, static_argnums=0, donate_argnames="progress", compiler_options=IN_LOOPS)
def advance(
    pair: Pair, params: Params, progress: Progress, settings: Settings, rounds: Array
) -> Progress:
    """Generates for `rounds` more, of one to `pair.num_tokens + 1` tokens each."""
    return _loop(pair, params, progress, settings, rounds)


def _loop(
    pair: Pair, params: Params, progress: Progress, settings: Settings, rounds: Array
) -> Progress:
    model, draft = pair.decoders(params)

    def is_running(carry: tuple[Array, Progress]) -> Array:
        i, progress = carry
        return (i < rounds) & (progress.ended_B == RUNNING).any()

    def step(carry: tuple[Array, Progress]) -> tuple[Array, Progress]:
        i, progress = carry
        proposals, progress = _propose(pair, draft, progress, settings)
        return i + 1, _verify(pair, model, progress, proposals, settings)

    return jax.lax.while_loop(is_running, step, (jnp.int32(0), progress))[1]


def _propose(
    pair: Pair, draft: Decoder, progress: Progress, settings: Settings
) -> tuple[Proposals, Progress]:
    """Draws `pair.num_tokens` tokens after each text from the draft model, one after the other.

    Each step reads the last two tokens, of which it may not know the first: if all tokens of the
    last round were taken.
    """
    drafting = progress.draft
    assert drafting is not None, "set by `begin`"
    is_running_B = progress.ended_B == RUNNING
    rows = jnp.arange(len(is_running_B))

    def propose(carry: tuple[Text, Caches], _: None) -> tuple[tuple[Text, Caches], Proposals]:
        text, cache = carry
        x_BTD, cache = _read(draft, text, cache, settings, is_running_B, 2, 0)
        logits_BV = draft.unembed(x_BTD[:, -1:])[:, 0]
        probs_BV = _probabilities(pair.draft.scores(logits_BV, text, settings), settings)
        probs_BV = jnp.where(jnp.isnan(probs_BV), 0, probs_BV)  # of no use, but no harm
        index_B = text.lengths_B - text.starts_B
        token_B = _draw(probs_BV, settings, index_B, PROPOSE)
        tokens_BS = text.tokens_BS.at[rows, text.lengths_B].set(token_B)
        text = text._replace(tokens_BS=tokens_BS, lengths_B=text.lengths_B + 1)
        return (text, cache), Proposals(token_B, probs_BV)

    carry = progress.text, drafting.cache
    (_, cache), proposals = jax.lax.scan(propose, carry, None, pair.num_tokens)
    drafted_B = drafting.drafted_B + pair.num_tokens * is_running_B
    return proposals, progress._replace(draft=drafting._replace(cache=cache, drafted_B=drafted_B))


def _verify(
    pair: Pair, model: Decoder, progress: Progress, proposals: Proposals, settings: Settings
) -> Progress:
    """Reads the proposed tokens together; adds those that are accepted, and one more.

    A token x that the draft drew with probability q(x) is accepted with min(1, p(x) / q(x)); the
    first that is not is replaced by a draw from max(0, p - q), normalized. After the last one, q
    is 0, so that the next token is drawn from p.
    """
    text, drafting = progress.text, progress.draft
    assert drafting is not None, "set by `begin`"
    is_running_B = progress.ended_B == RUNNING
    rows, places_J = jnp.arange(len(is_running_B))[:, None], jnp.arange(pair.num_tokens)
    tokens_BS = text.tokens_BS.at[rows, text.lengths_B[:, None] + places_J].set(
        proposals.tokens_JB.T
    )
    longer = text._replace(tokens_BS=tokens_BS)
    x_BTD, cache = _read(
        model, longer, progress.cache, settings, is_running_B, pair.num_tokens + 1, pair.num_tokens
    )
    logits_TBV = jnp.moveaxis(model.unembed(x_BTD), 1, 0)
    nothing = jax.tree.map(lambda x: jnp.zeros_like(x[:1]), proposals)
    given = jax.tree.map(lambda x, zero: jnp.concatenate([x, zero]), proposals, nothing)

    def add(
        carry: tuple[Progress, Array, Array], given: tuple[Array, Proposals]
    ) -> tuple[tuple[Progress, Array, Array], None]:
        progress, is_open_B, accepted_B = carry
        logits_BV, proposal = given
        scores_BV = pair.target.scores(logits_BV, progress.text, settings)
        index_B = progress.text.lengths_B - progress.text.starts_B
        token_B, is_accepted_B = _accept(scores_BV, proposal, settings, index_B)
        progress = add_token(progress, token_B, logits_BV, settings, is_open_B)
        accepted_B += is_open_B & is_accepted_B
        is_open_B &= is_accepted_B & (progress.ended_B == RUNNING)
        return (progress, is_open_B, accepted_B), None

    # The loop carries no caches. Room for texts is as before: what is proposed is overwritten.
    carried = progress._replace(cache={}, draft=None)
    carry = (carried, is_running_B, drafting.accepted_B)
    (progress, _, accepted_B), _ = jax.lax.scan(add, carry, (logits_TBV, given))
    return progress._replace(cache=cache, draft=drafting._replace(accepted_B=accepted_B))


def _read(
    model: Decoder,
    text: Text,
    cache: Caches,
    settings: Settings,
    is_running_B: Array,
    count: int,
    ahead: int,
) -> tuple[Array, Caches]:
    """Reads `count` tokens, which end `ahead` tokens after the text; returns BTD and the cache.

    What is beyond the limit of new tokens is no token, so that positions never run out.
    """
    ends_B1 = text.lengths_B[:, None] + ahead
    positions_BT = ends_B1 - count + jnp.arange(count)
    last_B1 = (text.starts_B + settings.limit_B)[:, None] - 2  # the last token is not fed back
    is_token_BT = (positions_BT >= 0) & (positions_BT <= last_B1) & is_running_B[:, None]
    places_BT = jnp.clip(positions_BT, 0, text.tokens_BS.shape[1] - 1)
    tokens_BT = jnp.take_along_axis(text.tokens_BS, places_BT, axis=1)
    context = Context(positions_BT=jnp.where(is_token_BT, positions_BT, -1))
    x_BTD, written, _ = model.hidden(tokens_BT, context, cache)
    assert written is not None, "a cache was given"
    return x_BTD, written


def _accept(
    scores_BV: Array, proposal: Proposals, settings: Settings, index_B: Array
) -> tuple[Array, Array]:
    """Returns the next token of each row, and whether it is the proposed one, both B."""
    rows, drafted_B, draft_BV = jnp.arange(len(index_B)), *proposal
    probs_BV = _probabilities(scores_BV, settings)
    keys_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(settings.keys(index_B), ACCEPT)
    random_B = jax.vmap(jax.random.uniform)(keys_B)
    own_B, given_B = probs_BV[rows, drafted_B], draft_BV[rows, drafted_B]
    is_accepted_B = random_B * given_B < own_B
    is_accepted_B &= given_B > 0
    rest_BV = jnp.maximum(probs_BV - draft_BV, 0)
    has_rest_B1 = rest_BV.sum(axis=-1, keepdims=True) > 0  # rounding may leave none
    other_B = _draw(jnp.where(has_rest_B1, rest_BV, probs_BV), settings, index_B, REPLACE)
    token_B = jnp.where(is_accepted_B, drafted_B, other_B)
    return jnp.where(jnp.isnan(scores_BV).any(-1), NO_TOKEN, token_B), is_accepted_B


def _probabilities(scores_BV: Array, settings: Settings) -> Array:
    """Returns the distribution that the next token is drawn from, BV; one-hot if greedy."""
    V = scores_BV.shape[-1]
    greedy_BV = jax.nn.one_hot(jnp.argmax(scores_BV, axis=-1), V)
    is_drawn_B = settings.temperature_B > 0

    def drawn() -> Array:
        probs_BV = jax.nn.softmax(warp(scores_BV, settings), axis=-1)
        return jnp.where(is_drawn_B[:, None], probs_BV, greedy_BV)

    return jax.lax.cond(is_drawn_B.any(), drawn, lambda: greedy_BV)


def _draw(probs_BV: Array, settings: Settings, index_B: Array, purpose: int) -> Array:
    """Draws the new token of this index for each row, B; a one-hot row gives its only token.

    What is drawn for one purpose is independent of the others, and of all other tokens.
    """

    def draw() -> Array:
        keys_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(settings.keys(index_B), purpose)
        return jax.vmap(jax.random.categorical)(keys_B, jnp.log(probs_BV))

    is_drawn = (settings.temperature_B > 0).any()
    token_B = jax.lax.cond(is_drawn, draw, lambda: jnp.argmax(probs_BV, axis=-1))
    return token_B.astype(jnp.int32)
