"""Temperature of attention that depends on the position of the query (Llama 4)."""

import jax.numpy as jnp
from jax import Array

from jaxllm.config import TemperatureConfig


def temperature_growth(temperature: TemperatureConfig, positions_BT: Array) -> Array:
    """Returns the factor of the query at each position, BT, in float32; see `TemperatureConfig`."""
    positions_BT = positions_BT.astype(jnp.float32) + temperature.offset
    steps_BT = jnp.floor(positions_BT / temperature.floor_scale)
    return 1 + temperature.scale * jnp.log1p(steps_BT)
