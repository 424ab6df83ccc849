"""What layers are told about the tokens besides their hidden states."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

# Added to the scores of queries and keys at these positions: (BT, BS) -> BNTS. B may be 1.
Bias = Callable[[Array, Array], Array]


class Source(NamedTuple):
    """An encoder's output: its hidden states, and the segments that its tokens belong to."""

    x_BSD: Array
    segment_ids_BS: Array  # 0 is padding


class Context(NamedTuple):
    """What a stack and each of its layers are told besides hidden states and caches.

    Fields:
        segment_ids_BT: tokens attend within equal ids only. 0 is padding, and packed documents
            have an id each. None: all tokens are of one segment.
        positions_BT: for RoPE, position embeddings and the cache's slots; B may be 1. With a
            cache, -1 is padding. None: 0, 1, 2, ...
        source: the encoder's output that cross-attention reads.
        bias: added to the scores of self-attention; a stack sets its own for its layers.
        dropout_key: of `jax.random.key`. None: nothing is dropped out.
    """

    segment_ids_BT: Array | None = None
    positions_BT: Array | None = None
    source: Source | None = None
    bias: Bias | None = None
    dropout_key: Array | None = None

    def resolve_positions(self, length: int) -> Array:
        """The positions of `length` tokens, BT: the given ones, or 0, 1, 2, ... with 1 for B."""
        return jnp.arange(length)[None] if self.positions_BT is None else self.positions_BT
