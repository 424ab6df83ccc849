"""Matmuls in 8-bit floats, by qwix: each operand is scaled to the range of its format.

Formats are those of Micikevicius et al. (2022): four bits of exponent and three of fraction for
activations and weights, five and two for gradients. Scales are the largest magnitudes along the
dimensions that are summed, so each row and each column has its own; products are added up in
float32 and scaled back.
"""

import functools
import importlib.util
import re

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxllm.errors import MissingPackageError

FORWARD, GRADIENT = jnp.float8_e4m3fn, jnp.float8_e5m2


def check_qwix() -> None:
    """Raises MissingPackageError if qwix is not installed."""
    if importlib.util.find_spec("qwix") is None:
        raise MissingPackageError(
            "matmuls in float8 need qwix, which is not installed: pip install 'jaxllm[float8]'"
        )


def float8_einsum(
    equation: str,
    x: Array,
    y: Array,
    *,
    formats: tuple[DTypeLike, DTypeLike] = (FORWARD, FORWARD),
) -> Array:
    """Computes an einsum of two arrays that are rounded to 8 bits, in float32.

    Args:
        equation: of two operands.
        x: the first operand.
        y: the second operand.
        formats: those of both.
    """
    check_qwix()
    import qwix

    *inputs, output = re.split(",|->", equation)
    quantize = functools.partial(qwix.quantize, scale_dtype=jnp.float32)
    rounded = [
        quantize(
            array.astype(jnp.float32),
            dtype,
            channelwise_axes=[i for i, letter in enumerate(letters) if letter in output],
        )
        for array, letters, dtype in zip((x, y), inputs, formats, strict=True)
    ]
    return qwix.einsum(equation, *rounded, preferred_element_type=jnp.float32)
