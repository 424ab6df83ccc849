"""The recurrent cache of a gated DeltaNet: its state, and the last tokens of its convolutions."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import Array

from jaxllm.config import StackConfig
from jaxllm.sharding import constrain


class DeltaCache(NamedTuple):
    """The recurrent state of each row: of a fixed size, for each head of values.

    Unlike keys and values, it cannot be taken back: tokens must come in the order of their
    positions, each once, with padding (position -1) after them. Rows for which that is not so
    become NaN.

    The state is float32 whatever the dtype of other caches: it is rounded with every token.
    """

    state_BNHW: Array
    q_BCKH: Array  # the last tokens before the convolution
    k_BCKH: Array
    v_BCNH: Array
    next_B: Array  # the position of the next token

    @classmethod
    def empty(cls, config: StackConfig, batch_size: int) -> Self:
        """A cache of no tokens."""
        delta = config.attention.delta
        assert delta is not None, "checked by the config"
        keys = (batch_size, delta.conv_size - 1, delta.num_key_heads, delta.key_dim)
        values = (batch_size, delta.conv_size - 1, delta.num_heads, delta.value_dim)
        state = (batch_size, delta.num_heads, delta.key_dim, delta.value_dim)
        dtype = config.numerics.dtype
        q_BCKH, k_BCKH, v_BCNH = (jnp.zeros(shape, dtype) for shape in (keys, keys, values))
        state_BNHW, next_B = jnp.zeros(state, jnp.float32), jnp.zeros(batch_size, jnp.int32)
        return cls(state_BNHW, q_BCKH, k_BCKH, v_BCNH, next_B)

    def cleared(self) -> Self:
        """Returns the cache of no tokens, of this size."""
        return jax.tree.map(jnp.zeros_like, self)

    @property
    def before(self) -> tuple[Array, Array, Array]:
        """The last tokens before the convolutions of queries, keys and values."""
        return self.q_BCKH, self.k_BCKH, self.v_BCNH

    def state_before(self, positions_BT: Array) -> Array:
        """Returns the state that these tokens continue, BNHW; NaN where they do not continue it."""
        is_token_BT, places_T = positions_BT >= 0, jnp.arange(positions_BT.shape[1])
        expected_BT = self.next_B[:, None] + places_T
        expected_BT = jnp.where(places_T < is_token_BT.sum(axis=1)[:, None], expected_BT, -1)
        is_next_B = (jnp.where(is_token_BT, positions_BT, -1) == expected_BT).all(axis=1)
        return jnp.where(is_next_B[:, None, None, None], self.state_BNHW, jnp.nan)

    def after(self, channels: Sequence[Array], state_BNHW: Array, positions_BT: Array) -> Self:
        """Returns the cache after further tokens.

        Args:
            channels: queries, keys and values before the convolutions.
            state_BNHW: the state after them.
            positions_BT: their positions; -1 is padding.
        """
        count_B = (positions_BT >= 0).sum(axis=1)
        pairs = zip(self.before, channels, strict=True)
        q_BCKH, k_BCKH, v_BCNH = (_last(before, new, count_B) for before, new in pairs)
        state_BNHW = constrain(state_BNHW, "BNHW")
        return type(self)(state_BNHW, q_BCKH, k_BCKH, v_BCNH, self.next_B + count_B)


def _last(before_BCKH: Array, x_BTKH: Array, count_B: Array) -> Array:
    """Returns the last C tokens of each row after `count_B` more."""
    wide_BSKH = jnp.concatenate([before_BCKH, x_BTKH.astype(before_BCKH.dtype)], axis=1)
    places_BC = count_B[:, None] + jnp.arange(before_BCKH.shape[1])
    last_BCKH = jnp.take_along_axis(wide_BSKH, places_BC[..., None, None], axis=1)
    return constrain(last_BCKH, "BCKH")
