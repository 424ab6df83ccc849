"""A model that continues texts: a cache of what it has read, and one more token at a time."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxllm.config import StackConfig
from jaxllm.layers.attention.cache import Caches
from jaxllm.layers.context import Context
from jaxllm.models import Decoder, EncoderDecoder, TokenModel


class Prefilled(NamedTuple):
    """A decoder that has read a text in each row, and is to continue it."""

    model: Decoder
    x_BD: Array  # the hidden state of the last token
    cache: Caches
    tokens_BT: Array  # the text: a prompt, or the first of a target if an encoder has read it
    lengths_B: Array

    def seen_tokens(self) -> Array:
        """Which tokens are in each text, BV."""
        B, T = self.tokens_BT.shape
        V = self.model.config.vocab_size
        is_token_BT = jnp.arange(T) < self.lengths_B[:, None]
        tokens_BT = jnp.where(is_token_BT, self.tokens_BT, V)  # past the last: dropped
        return jnp.zeros((B, V), bool).at[jnp.arange(B)[:, None], tokens_BT].set(True)

    def repeat_rows(self, times: int) -> "Prefilled":
        """The same with each row so often, one beside the other."""
        rows = (self.x_BD, self.cache, self.tokens_BT, self.lengths_B)
        return Prefilled(self.model, *jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), rows))


def prefill(model: TokenModel, tokens_BT: Array, lengths_B: Array, room: int) -> Prefilled:
    """The decoder after the prompts, its cache with `room` for more tokens."""
    source = None
    if isinstance(model, EncoderDecoder):
        tokens_BT = tokens_BT[:, : model.config.longest_source]  # no prompt is longer
        is_token_BT = jnp.arange(tokens_BT.shape[1]) < lengths_B[:, None]
        source, _ = model.encode(tokens_BT, segment_ids=is_token_BT)
        assert model.config.start_token is not None, "checked with the prompts"
        tokens_BT = jnp.full_like(tokens_BT[:, :1], model.config.start_token)
        model, lengths_B = model.decoder, jnp.ones_like(lengths_B)
    B, T = tokens_BT.shape
    empty = model.init_cache(B, T + room, source)
    x_BD, cache = _read(model, tokens_BT, lengths_B, empty)
    return Prefilled(model, x_BD, cache, tokens_BT, lengths_B)


def _read(
    model: Decoder, tokens_BT: Array, lengths_B: Array, cache: Caches
) -> tuple[Array, Caches]:
    """The last token's hidden state, BD, and the cache of texts that are read as a whole."""
    B, T = tokens_BT.shape
    positions_BT = jnp.arange(T)[None]
    positions_BT = jnp.where(positions_BT < lengths_B[:, None], positions_BT, -1)  # -1: padding
    x_BTD, written, _ = model.hidden(tokens_BT, Context(positions_BT=positions_BT), cache)
    assert written is not None, "since a cache was given"
    return x_BTD[jnp.arange(B), lengths_B - 1], written


def decode_step(start: Prefilled, cache: Caches, new_BR: Array, i: Array) -> tuple[Array, Caches]:
    """The hidden state of new token `i`, BD, and the cache with it in it; room for R is in it.

    Where RoPE's frequencies change for all of a text once it is longer than `original_max_len`,
    a row that gets there is read again from its beginning.
    """
    model, (B, T), R = start.model, start.tokens_BT.shape, new_BR.shape[1]
    positions_B1 = (start.lengths_B + i)[:, None]
    x_B1D, written, _ = model.hidden(new_BR[:, i, None], Context(positions_BT=positions_B1), cache)
    assert written is not None, "since a cache was given"
    step = x_B1D[:, 0], written
    limit = _turn(model.config)
    if limit is None or limit >= T + R:  # which none gets to
        return step

    def again() -> tuple[Array, Caches]:
        places = jnp.arange(B)[:, None], start.lengths_B[:, None] + jnp.arange(R)
        tokens_BS = jnp.pad(start.tokens_BT, ((0, 0), (0, R))).at[places].set(new_BR)
        whole = _read(model, tokens_BS, positions_B1[:, 0] + 1, cache)
        return jax.tree.map(partial(jax.vmap(jnp.where), turns_B), whole, step)

    turns_B = positions_B1[:, 0] == limit
    return jax.lax.cond(turns_B.any(), again, lambda: step)


def _turn(config: StackConfig) -> int | None:
    """The position from which on the frequencies of a text are others, as those of LongRoPE are.

    (Those of "dynamic" scaling grow with every token: keys stay as they were written.)
    """
    scaling = config.rope.scaling
    return scaling.original_max_len if scaling and scaling.kind == "longrope" else None
