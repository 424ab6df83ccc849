"""Gathering a layer's kernels over the devices that share them, once for all that uses them."""

import functools
from typing import Any, TypeVar

import jax
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from jaxllm.sharding import DIMS, constrain

Module = TypeVar("Module", bound=nnx.Module)


def gather_kernels(module: Module, dtype: DTypeLike) -> Module:
    """Returns a copy of a layer whose kernels are whole along D, rounded to a dtype.

    Within a layer that is recomputed, the backward pass then gathers each kernel once, for the
    recomputation and for the gradient of its input; left to XLA, each of them may gather it. The
    kernels have their own dtype, and so have their gradients, which are summed unrounded. Experts
    are left as they are: they gather their own.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or all(mesh.shape.get(axis, 1) == 1 for axis in DIMS["D"]):
        return module
    graphdef, state = nnx.split(module)

    def gather(variable: Any) -> Any:
        dims = getattr(variable, "dims", "")
        if "D" not in dims or "E" in dims or len(dims) == 1:
            return variable
        return variable.replace(_gather(dims, dtype, variable.get_value()))

    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(gather, state, is_leaf=is_variable))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(dims: str, dtype: DTypeLike, kernel: Array) -> Array:
    return constrain(kernel.astype(dtype), dims.replace("D", ".")).astype(kernel.dtype)


_gather.defvjp(
    lambda dims, dtype, kernel: (_gather(dims, dtype, kernel), None),
    lambda dims, dtype, _, dkernel: (constrain(dkernel, dims),),
)
