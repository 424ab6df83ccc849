"""Learning rate as a function of the step."""

import jax.numpy as jnp
import optax
from jax import Array


def warmup_cosine(peak: float, final: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Linear warm-up to `peak`, then half a cosine (Loshchilov and Hutter, 2017) down to `final`.

    The first step, number 0, already learns: `peak * (step + 1) / warmup_steps`. From
    `total_steps` on the rate stays at `final`.
    """

    def rate(step: Array) -> Array:
        progress = (step - warmup_steps) / (total_steps - warmup_steps)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))
        warm = peak * (step + 1) / max(warmup_steps, 1)
        return jnp.where(step < warmup_steps, warm, final + cosine * (peak - final))

    return rate
