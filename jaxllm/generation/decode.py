"""Generation with a cache: one pass over the prompts, then a loop that stays on the device."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxllm.generation.sampling import Sampling
from jaxllm.layers.cache import Caches
from jaxllm.models import with_scanned_layers
from jaxllm.models.decoder import Decoder

GREEDY = Sampling()


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    sampling: Sampling = GREEDY,
    eos_ids: Sequence[int] = (),
    seed: int = 0,
) -> list[list[int]]:
    """The tokens that follow each prompt, up to and with the first of `eos_ids`.

    Rows do not affect each other: a prompt gives the same tokens alone and in a batch, and a
    sampled row depends on `seed` and on its place in the batch alone.

    Args:
        model: if its layers are scanned they are unstacked first; a caller that generates often
            does that once, with `with_scanned_layers(model, False)`.
        prompts: token ids, of any lengths.
        max_new_tokens: the most tokens to return for a prompt.
        sampling: how to choose; greedy by default.
        eos_ids: tokens that end a text.
        seed: of the random numbers.

    Raises:
        ValueError: no prompt, an empty one, an unknown token, or fewer than one new token.
    """
    check_prompts(model, prompts, max_new_tokens)
    tokens, lengths = padded(prompts)
    graphdef, state = nnx.split(with_scanned_layers(model, False))
    out = _decode(
        graphdef,
        sampling,
        bucket(max_new_tokens),
        nnx.to_pure_dict(state),
        tokens,
        lengths,
        np.int32(max_new_tokens),
        np.array(sorted(eos_ids), np.int32),
        jax.random.key(seed),
    )
    return [until_end(row[:max_new_tokens].tolist(), set(eos_ids)) for row in np.asarray(out)]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _decode(
    graphdef: nnx.GraphDef,
    sampling: Sampling,
    room: int,
    params: dict,
    tokens_BT: Array,
    lengths_B: Array,
    limit: Array,
    eos_ids: Array,
    key: Array,
) -> Array:
    """New tokens in a (B, room) array, of which `limit` are asked for."""
    model: Decoder = nnx.merge(graphdef, nnx.State(params))
    B = tokens_BT.shape[0]
    rows = jnp.arange(B)

    def choose(x_BD: Array, i: Array) -> Array:
        keys_B = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, row), i))(rows)
        return sampling(model.unembed(x_BD[:, None])[:, 0], keys_B)

    x_BD, cache = prefill(model, tokens_BT, lengths_B, room)
    first_B = choose(x_BD, jnp.int32(0))
    out_BR = jnp.zeros((B, room), jnp.int32).at[:, 0].set(first_B)

    def is_going(carry: tuple) -> Array:
        i, _, is_done_B, *_ = carry
        return (i < limit) & ~is_done_B.all()

    def step(carry: tuple) -> tuple:
        i, token_B, is_done_B, cache, out_BR = carry
        positions_B1 = (lengths_B + i - 1)[:, None]
        x_B1D, cache, _ = model.hidden(token_B[:, None], positions=positions_B1, cache=cache)
        token_B = choose(x_B1D[:, 0], i)
        is_done_B |= jnp.isin(token_B, eos_ids)
        return i + 1, token_B, is_done_B, cache, out_BR.at[:, i].set(token_B)

    start = (jnp.int32(1), first_B, jnp.isin(first_B, eos_ids), cache, out_BR)
    return jax.lax.while_loop(is_going, step, start)[-1]


def prefill(
    model: Decoder, tokens_BT: Array, lengths_B: Array, room: int
) -> tuple[Array, Caches | None]:
    """The hidden state of each prompt's last token, BD, and a cache with `room` for more."""
    B, T = tokens_BT.shape
    positions_BT = jnp.arange(T)[None]
    positions_BT = jnp.where(positions_BT < lengths_B[:, None], positions_BT, -1)  # -1: padding
    empty = model.init_cache(B, T + room)
    x_BTD, cache, _ = model.hidden(tokens_BT, positions=positions_BT, cache=empty)
    return x_BTD[jnp.arange(B), lengths_B - 1], cache


def padded(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """The prompts side by side, BT, and their lengths, B."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens = np.zeros((len(prompts), bucket(int(lengths.max()))), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return tokens, lengths


def bucket(size: int) -> int:
    """The next power of two, at least 16: so few programs are compiled whatever the sizes."""
    return max(16, 1 << (size - 1).bit_length())


def until_end(tokens: list[int], eos_ids: set[int]) -> list[int]:
    """The tokens up to and with the first that ends a text."""
    ends = (place + 1 for place, token in enumerate(tokens) if token in eos_ids)
    return tokens[: next(ends, len(tokens))]


def check_prompts(model: Decoder, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raises ValueError for prompts and lengths that make no sense for the model."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} is less than 1")
    if len(prompts) == 0:
        raise ValueError("no prompts")
    vocab_size = model.config.vocab_size
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {i} is empty: there is nothing to continue")
        if unknown := [token for token in prompt if not 0 <= token < vocab_size]:
            raise ValueError(f"prompt {i} has token {unknown[0]}; vocab_size is {vocab_size}")
