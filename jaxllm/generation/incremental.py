"""Incremental decoding: prefill a cache with the prompts, then decode one token at a time."""

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
    """A decoder and its cache after it has read the text of each row."""

    model: Decoder
    x_BD: Array  # hidden state of each row's last token
    cache: Caches
    tokens_BT: Array  # the prompts, padded on the right; for an encoder-decoder, the start token
    lengths_B: Array  # tokens per row, without padding

    def seen_tokens(self) -> Array:
        """Returns a mask of the tokens that occur in each text, BV."""
        B, T = self.tokens_BT.shape
        V = self.model.config.vocab_size
        is_token_BT = jnp.arange(T) < self.lengths_B[:, None]
        tokens_BT = jnp.where(is_token_BT, self.tokens_BT, V)  # index V is dropped
        return jnp.zeros((B, V), bool).at[jnp.arange(B)[:, None], tokens_BT].set(True)

    def repeat_rows(self, times: int) -> "Prefilled":
        """Returns a copy in which each row is repeated `times` times, in adjacent rows."""
        rows = (self.x_BD, self.cache, self.tokens_BT, self.lengths_B)
        return Prefilled(self.model, *jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), rows))


def prefill(model: TokenModel, tokens_BT: Array, lengths_B: Array, room: int) -> Prefilled:
    """Reads the prompts.

    An encoder-decoder encodes the prompts, and its decoder reads the start token.

    Args:
        model: a decoder or an encoder-decoder.
        tokens_BT: the prompts, padded on the right.
        lengths_B: tokens per prompt, without padding.
        room: number of further tokens that the cache has room for.

    Returns:
        The decoder, ready to generate the next token of each row.
    """
    source = None
    if isinstance(model, EncoderDecoder):
        tokens_BT = tokens_BT[:, : model.config.longest_source]  # cuts only padding
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
    """Reads whole texts; returns the hidden state of each row's last token, BD, and the cache."""
    B, T = tokens_BT.shape
    positions_BT = jnp.arange(T)[None]
    positions_BT = jnp.where(positions_BT < lengths_B[:, None], positions_BT, -1)  # -1: padding
    x_BTD, written, _ = model.hidden(tokens_BT, Context(positions_BT=positions_BT), cache)
    assert written is not None, "a cache was given"
    return x_BTD[jnp.arange(B), lengths_B - 1], written


def decode_step(start: Prefilled, cache: Caches, new_BR: Array, i: Array) -> tuple[Array, Caches]:
    """Decodes one token of each row.

    With LongRoPE, the frequencies of a whole text change once it is longer than
    `original_max_len`. A row that reaches this length is read again from its beginning.

    Args:
        start: the decoder after the prompts.
        cache: holds the prompts and the new tokens before `i`.
        new_BR: the new tokens; those up to and including `i` are set.
        i: index of the new token to read.

    Returns:
        The hidden state of new token `i`, BD, and the cache with the token added.
    """
    model, (B, T), R = start.model, start.tokens_BT.shape, new_BR.shape[1]
    positions_B1 = (start.lengths_B + i)[:, None]
    x_B1D, written, _ = model.hidden(new_BR[:, i, None], Context(positions_BT=positions_B1), cache)
    assert written is not None, "a cache was given"
    step = x_B1D[:, 0], written
    limit = _reread_position(model.config)
    if limit is None or limit >= T + R:  # no row can reach it
        return step

    def reread() -> tuple[Array, Caches]:
        places = jnp.arange(B)[:, None], start.lengths_B[:, None] + jnp.arange(R)
        tokens_BS = jnp.pad(start.tokens_BT, ((0, 0), (0, R))).at[places].set(new_BR)
        whole = _read(model, tokens_BS, positions_B1[:, 0] + 1, cache)
        return jax.tree.map(partial(jax.vmap(jnp.where), rereads_B), whole, step)

    rereads_B = positions_B1[:, 0] == limit
    return jax.lax.cond(rereads_B.any(), reread, lambda: step)


def _reread_position(config: StackConfig) -> int | None:
    """Returns the first position with the long frequencies of LongRoPE; None without LongRoPE.

    "dynamic" scaling changes frequencies with every token; there, cached keys stay as written.
    """
    scaling = config.rope.scaling
    return scaling.original_max_len if scaling and scaling.kind == "longrope" else None
