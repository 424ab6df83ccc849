"""Choice of the next token from logits: greedy, temperature, top-k, top-p, repetition penalty."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxllm.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings for choosing the next token; they apply in the order of the fields.

    The order is that of transformers.

    Args:
        repetition_penalty: applied to tokens that are in the prompt or were generated; above 1
            makes them less likely (Keskar et al., 2019).
        temperature: divides the logits; 0 is greedy.
        top_k: keeps the k most likely tokens. None: all.
        top_p: keeps the fewest tokens whose probabilities add up to p (Holtzman et al., 2020).
            None: all.

    Raises:
        UserError: a setting is out of range, or top_k or top_p is given with temperature 0.
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        check_repetition_penalty(self.repetition_penalty)
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature={self.temperature} must be finite and at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k={self.top_k} is less than 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} is not in (0, 1]")
        if self.temperature == 0 and (self.top_k, self.top_p) != (None, None):
            raise UserError("top_k and top_p need a temperature above 0, since 0 is greedy")

    def filter_logits(self, logits_BV: Array) -> Array:
        """Divides logits by the temperature; sets tokens outside top-k and top-p to -inf. BV."""
        logits_BV = logits_BV / self.temperature
        if self.top_k is not None:
            k = min(self.top_k, logits_BV.shape[-1])
            least_B1 = jax.lax.top_k(logits_BV, k)[0][:, -1:]
            logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
        if self.top_p is not None:
            logits_BV = _keep_nucleus(logits_BV, self.top_p)
        return logits_BV

    def __call__(self, logits_BV: Array, keys_B: Array, seen_BV: Array | None = None) -> Array:
        """Chooses the next token of each row.

        Args:
            logits_BV: logits of the next token.
            keys_B: a random key for each row.
            seen_BV: mask of the tokens that the repetition penalty applies to.

        Returns:
            A token per row, B, int32.
        """
        if seen_BV is not None:
            logits_BV = penalize_repetition(logits_BV, seen_BV, self.repetition_penalty)
        if self.temperature == 0:
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        draw = jax.vmap(jax.random.categorical)
        return draw(keys_B, self.filter_logits(logits_BV)).astype(jnp.int32)


def check_repetition_penalty(penalty: float) -> None:
    """Raises UserError if a repetition penalty is not positive and finite."""
    if not 0 < penalty < math.inf:
        raise UserError(f"repetition_penalty={penalty} must be finite and above 0")


def penalize_repetition(scores_BV: Array, seen_BV: Array, penalty: ArrayLike) -> Array:
    """Lowers the scores of seen tokens by a penalty above 1; a penalty below 1 raises them.

    Positive scores are divided by the penalty, negative ones multiplied by it.
    """
    lowered_BV = jnp.where(scores_BV < 0, scores_BV * penalty, scores_BV / penalty)
    return jnp.where(seen_BV, lowered_BV, scores_BV)


def _keep_nucleus(logits_BV: Array, p: float) -> Array:
    """Sets the least likely tokens, of total probability up to 1 - p, to -inf; one is kept."""
    order_BV = jnp.argsort(logits_BV, axis=-1)
    ascending_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1)
    below_BV = jnp.cumsum(jax.nn.softmax(ascending_BV, axis=-1), axis=-1)
    is_out_BV = (below_BV <= 1 - p).at[:, -1].set(False)
    kept_BV = jnp.where(is_out_BV, -jnp.inf, ascending_BV)
    return jnp.take_along_axis(kept_BV, jnp.argsort(order_BV, axis=-1), axis=-1)
