"""Inputs of layers besides hidden states: segments, positions, source, bias and dropout key."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

# Maps the positions of queries, BT, and keys, BS, to a bias of the scores, BNTS. B may be 1.
Bias = Callable[[Array, Array], Array]


class Source(NamedTuple):
    """An encoder's output: hidden states and segment ids."""

    x_BSD: Array
    segment_ids_BS: Array  # 0 is padding


class Context(NamedTuple):
    """Inputs of a stack and its layers besides hidden states and caches.

    Args:
        segment_ids_BT: tokens attend only to tokens with the same id. 0 is padding; each packed
            document has its own id. None: all tokens are in one segment.
        positions_BT: for RoPE, position embeddings and the slots of the cache; B may be 1. With a
            cache, -1 is padding. None: 0, 1, 2, ...
        source: the encoder's output, for cross-attention.
        bias: added to the scores of self-attention; a stack sets it for its layers.
        dropout_key: a `jax.random.key`. None: no dropout.
        depth: the number of the layer, from 1 on; a stack sets it if its attention depends on it.
    """

    segment_ids_BT: Array | None = None
    positions_BT: Array | None = None
    source: Source | None = None
    bias: Bias | None = None
    dropout_key: Array | None = None
    depth: Array | None = None

    def resolve_positions(self, length: int) -> Array:
        """Returns the positions of `length` tokens, BT: as given, or 0, 1, 2, ... with B = 1."""
        return jnp.arange(length)[None] if self.positions_BT is None else self.positions_BT
