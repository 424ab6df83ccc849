"""LoRA (Hu et al., 2021): a matrix of low rank beside the frozen kernel of a projection."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.layers.dropout import dropout

RANK = "R"  # the dimension between the two factors


class LowRank(nnx.Module):
    """Computes `scale * einsum(x, a, b)`, what training adds to a projection.

    Args:
        equation: the projection's einsum, such as `BTD,DNH->BTNH`.
        a: the factor that takes the projection's input, as (D, R); with a leading L if stacked.
        b: the factor that gives its output, as (R, N, H). Both may be shapes only.
        scale: of the product.
        rate: of the dropout of x, which needs a key (`set_keys`).
    """

    def __init__(self, equation: str, a: Any, b: Any, *, scale: float, rate: float):
        self.equation, self.scale, self.rate = equation, scale, rate
        a_dims, b_dims = factor_dims(equation)
        self.a = nnx.Param(a, dims=a_dims, summed=summed_dims(equation))
        self.b = nnx.Param(b, dims=b_dims, summed=RANK)
        self.key: Array | None = nnx.data(None)

    def __call__(self, x: Array) -> Array:
        """Returns what to add to the projection of x, in float32."""
        x_dims, _, y_dims = split_equation(self.equation)
        a_dims, b_dims = factor_dims(self.equation)
        between = "".join(letter for letter in x_dims if letter not in a_dims) + RANK
        into, out = f"{x_dims},{a_dims}->{between}", f"{between},{b_dims}->{y_dims}"
        low = _product(into, dropout(x, self.rate, self.key), self.a[...]).astype(x.dtype)
        return self.scale * _product(out, low, self.b[...])

    def delta(self) -> Array:
        """Returns what to add to the kernel for the same outputs without dropout, in float32."""
        _, dims, _ = split_equation(self.equation)
        a_dims, b_dims = factor_dims(self.equation)
        stacked = "L" * (self.a.ndim - len(a_dims))
        equation = f"{stacked}{a_dims},{stacked}{b_dims}->{stacked}{dims}"
        return self.scale * _product(equation, self.a[...], self.b[...])


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def split_equation(equation: str) -> tuple[str, str, str]:
    """Returns the letters of the input, the kernel and the output of an einsum."""
    x_dims, dims, y_dims = equation.replace("->", ",").split(",")
    return x_dims, dims, y_dims


def summed_dims(equation: str) -> str:
    """Returns the letters of the kernel that the einsum sums over, such as `D`."""
    x_dims, dims, y_dims = split_equation(equation)
    return "".join(letter for letter in dims if letter in x_dims and letter not in y_dims)


def factor_dims(equation: str) -> tuple[str, str]:
    """Returns the letters of both factors: `DR` and `RNH`. One per expert, both begin with E."""
    x_dims, dims, y_dims = split_equation(equation)
    each = "".join(letter for letter in dims if letter in x_dims and letter in y_dims)
    summed = summed_dims(equation)
    given = "".join(letter for letter in dims if letter not in each + summed)
    return each + summed + RANK, each + RANK + given


def draw_factor(key: Array, shape: tuple[int, ...], dims: str) -> Array:
    """Draws a factor as PEFT does: `a` uniform within 1 / sqrt(its inputs), and `b` zero.

    Args:
        key: random key.
        shape: its shape, with L if its layers are stacked.
        dims: its letters without L.
    """
    if not dims.endswith(RANK):
        return jnp.zeros(shape)
    sizes = dict(zip(reversed(dims), reversed(shape), strict=False))
    inputs = math.prod(size for letter, size in sizes.items() if letter not in (RANK, "E"))
    bound = 1 / math.sqrt(inputs)
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
