"""From logits to tokens: greedy, temperature, top-k, top-p. Pure functions of logits and keys."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array

from jaxllm.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    The filters apply in the order of the fields, as in transformers. Temperature 0 is greedy.
    `repetition_penalty` is of tokens that are in the prompt or what follows (Keskar et al., 2019);
    `top_k` keeps the k most likely tokens; `top_p` (Holtzman et al., 2020) the fewest whose
    probabilities add up to p.
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        check_repetition_penalty(self.repetition_penalty)
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature={self.temperature} is not a number from 0 up")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k={self.top_k} is less than 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} is not in (0, 1]")
        if self.temperature == 0 and (self.top_k, self.top_p) != (None, None):
            raise UserError("top_k and top_p need a temperature above 0; 0 is greedy")

    def filter_logits(self, logits_BV: Array) -> Array:
        """The logits to draw from, BV: scaled, and -inf for the tokens that are out."""
        logits_BV = logits_BV / self.temperature
        if self.top_k is not None:
            k = min(self.top_k, logits_BV.shape[-1])
            least_B1 = jax.lax.top_k(logits_BV, k)[0][:, -1:]
            logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
        if self.top_p is not None:
            logits_BV = _keep_nucleus(logits_BV, self.top_p)
        return logits_BV

    def __call__(self, logits_BV: Array, keys_B: Array, seen_BV: Array | None = None) -> Array:
        """The next token of each row, drawn with that row's key: B, int32.

        `seen_BV` says which tokens are penalised.
        """
        if seen_BV is not None:
            logits_BV = penalize_repetition(logits_BV, seen_BV, self.repetition_penalty)
        if self.temperature == 0:
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        draw = jax.vmap(jax.random.categorical)
        return draw(keys_B, self.filter_logits(logits_BV)).astype(jnp.int32)


def check_repetition_penalty(penalty: float) -> None:
    """Raises UserError for a repetition penalty that is not positive."""
    if not 0 < penalty < math.inf:
        raise UserError(f"repetition_penalty={penalty} is not a number above 0")


def penalize_repetition(scores_BV: Array, seen_BV: Array, penalty: float | Array) -> Array:
    """Scores lowered by a penalty above 1 where tokens were seen; one below 1 raises them.

    Positive ones are divided by it, negative ones multiplied.
    """
    lowered_BV = jnp.where(scores_BV < 0, scores_BV * penalty, scores_BV / penalty)
    return jnp.where(seen_BV, lowered_BV, scores_BV)


def _keep_nucleus(logits_BV: Array, p: float) -> Array:
    """-inf for the least likely tokens that together have no more than 1 - p; one always stays."""
    order_BV = jnp.argsort(logits_BV, axis=-1)
    ascending_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1)
    below_BV = jnp.cumsum(jax.nn.softmax(ascending_BV, axis=-1), axis=-1)
    is_out_BV = (below_BV <= 1 - p).at[:, -1].set(False)
    kept_BV = jnp.where(is_out_BV, -jnp.inf, ascending_BV)
    return jnp.take_along_axis(kept_BV, jnp.argsort(order_BV, axis=-1), axis=-1)
