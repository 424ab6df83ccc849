"""Incremental decoding: prefill a cache with the prompts, then decode one token at a time."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxllm.config import StackConfig
from jaxllm.layers.attention.cache import CacheDtype, Caches, with_nothing_written
from jaxllm.layers.context import Context
from jaxllm.layers.vision import MaskedEmbedding
from jaxllm.models import Decoder, EncoderDecoder, TokenModel

from .scores.processors import Text

# Longer prompts are read in chunks, whose activations are all that lives at once beside the cache.
CHUNK = 2048


class Prefilled(NamedTuple):
    """A decoder and its cache after it has read the text of each row."""

    model: Decoder
    x_BD: Array  # hidden state of each row's last token
    cache: Caches
    tokens_BT: Array  # the prompts, padded on the right; for an encoder-decoder, the start token
    lengths_B: Array  # tokens per row, without padding

    def repeat_rows(self, times: int) -> "Prefilled":
        """Returns a copy in which each row is repeated `times` times, in adjacent rows."""
        rows = (self.x_BD, self.cache, self.tokens_BT, self.lengths_B)
        return Prefilled(self.model, *jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), rows))

    def text(self, new_BR: Array, num_new: Array) -> Text:
        """Returns the texts with new tokens, of which the first `num_new` count."""
        B, R = new_BR.shape
        places = jnp.arange(B)[:, None], self.lengths_B[:, None] + jnp.arange(R)
        tokens_BS = jnp.pad(self.tokens_BT, ((0, 0), (0, R))).at[places].set(new_BR)
        return Text(tokens_BS, self.lengths_B + num_new, self.lengths_B)


def prefill(
    model: TokenModel,
    tokens_BT: Array,
    lengths_B: Array,
    room: int,
    cache_dtype: CacheDtype | None = None,
    spare: int = 0,
    image: MaskedEmbedding | None = None,
) -> Prefilled:
    """Reads the prompts.

    An encoder-decoder encodes the prompts, and its decoder reads the start token.

    Args:
        model: a decoder or an encoder-decoder.
        tokens_BT: the prompts, padded on the right.
        lengths_B: tokens per prompt, without padding.
        room: number of further tokens that the cache has room for.
        cache_dtype: of the cache. Default: that of the activations.
        spare: how many of the last tokens may be taken back; see `init_cache`.
        image: embeddings in place of the image tokens of the prompts.

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
    empty = model.init_cache(B, T + room, source, cache_dtype, spare)
    x_BD, cache = read_texts(model, tokens_BT, lengths_B, empty, image)
    return Prefilled(model, x_BD, cache, tokens_BT, lengths_B)


def read_texts(
    model: Decoder,
    tokens_BT: Array,
    lengths_B: Array,
    cache: Caches,
    image: MaskedEmbedding | None = None,
    starts_B: Array | None = None,
) -> tuple[Array, Caches]:
    """Reads texts, in chunks; returns the hidden state of each row's last token, BD, and the cache.

    They are whole, and what the cache holds is overwritten; or, with `starts_B`, they continue the
    first so many tokens in the cache.
    """
    B, T = tokens_BT.shape
    size = T if frequencies_change(model.config) else min(T, CHUNK)
    rows = jnp.arange(B)

    def read(last_BD: Array | None, cache: Caches, start: Array | int) -> tuple[Array, Caches]:
        places_BT = jnp.broadcast_to(start + jnp.arange(size)[None], (B, size))
        positions_BT = places_BT if starts_B is None else places_BT + starts_B[:, None]
        positions_BT = jnp.where(places_BT < lengths_B[:, None], positions_BT, -1)  # padding
        chunk_BT, own = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1), (tokens_BT, image)
        )
        is_first = last_BD is None and starts_B is None
        given = with_nothing_written(cache) if is_first else cache
        context = Context(positions_BT=positions_BT)
        x_BTD, written, _ = model.hidden(chunk_BT, context, given, image_embedding=own)
        assert written is not None, "a cache was given"
        last_B = lengths_B - 1 - start
        own_BD = x_BTD[rows, jnp.clip(last_B, 0, size - 1)]
        if last_BD is None:
            return own_BD, written
        is_own_B1 = ((last_B >= 0) & (last_B < size))[:, None]
        return jnp.where(is_own_B1, own_BD, last_BD), written

    tokens_BT, image = jax.tree.map(
        lambda x: jnp.pad(x, ((0, 0), (0, -T % size), *[(0, 0)] * (x.ndim - 2))),
        (tokens_BT, image),
    )
    carry = read(None, cache, 0)
    if size >= T:
        return carry
    starts = jnp.arange(size, T, size)
    return jax.lax.scan(lambda carry, start: (read(*carry, start), None), carry, starts)[0]


def decode_step(
    model: Decoder, cache: Caches, text: Text, is_running_B: Array | None = None
) -> tuple[Array, Caches]:
    """Reads the last token of each row.

    With LongRoPE, the frequencies of a whole text change once it is longer than
    `original_max_len`. A row that reaches this length is read again from its beginning.

    Args:
        model: the decoder.
        cache: holds the tokens of each row but the last.
        text: the tokens of each row.
        is_running_B: rows to read; nothing is written for the others, and their results mean
            nothing. Default: all.

    Returns:
        The hidden state of the last token of each row, BD, and the cache with the token added.
    """
    B, S = text.tokens_BS.shape
    positions_B = text.lengths_B - 1
    tokens_B1 = text.tokens_BS[jnp.arange(B), positions_B][:, None]
    if is_running_B is not None:
        positions_B = jnp.where(is_running_B, positions_B, -1)
    context = Context(positions_BT=positions_B[:, None])
    x_B1D, written, _ = model.hidden(tokens_B1, context, cache)
    assert written is not None, "a cache was given"
    step = x_B1D[:, 0], written
    limit = _reread_position(model.config)
    if limit is None or limit >= S:  # no row can reach it
        return step

    def reread() -> tuple[Array, Caches]:
        whole = read_texts(model, text.tokens_BS, text.lengths_B, cache)
        return jax.tree.map(partial(jax.vmap(jnp.where), rereads_B), whole, step)

    rereads_B = positions_B == limit
    return jax.lax.cond(rereads_B.any(), reread, lambda: step)


def frequencies_change(config: StackConfig) -> bool:
    """Returns whether the frequencies of RoPE depend on the length of what is read in one call."""
    return config.rope.scaling is not None and config.rope.scaling.kind in ("dynamic", "longrope")


def _reread_position(config: StackConfig) -> int | None:
    """Returns the first position with the long frequencies of LongRoPE; None without LongRoPE.

    "dynamic" scaling changes frequencies with every token; there, cached keys stay as written.
    """
    scaling = config.rope.scaling
    return scaling.original_max_len if scaling and scaling.kind == "longrope" else None
