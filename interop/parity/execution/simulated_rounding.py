"""Simulated rounding: the reference with as much rounding error as float32 arithmetic may have.

Two correct implementations add in different orders and round differently. This context draws from
that variety: it adds to the result of every operation a random error of the size that float32 may
lose there, given the numbers that the operation combines, in the forward and the backward pass.

A sum `s = t_1 + ... + t_k` loses as much as if its terms were added one by one in a random order:
the partial sum of j terms then has the mean square `(j/k)^2 s^2 + (j/k)(1 - j/k) q`, q the sum of
the squares of the terms. With independent rounding errors, uniform within the unit roundoff u
(Higham and Mary, 2019, "A new approach to probabilistic rounding error analysis"), the variance of
s is `u^2 (k s^2 / 9 + k q / 18)`, and `u^2 q / 3` more for the rounding of products. Kernels that
add in blocks lose less. The error of a function of single elements has the deviation u times its
result. In bfloat16 and float16, sums are kept in float32 and only results are rounded, to the
nearest number, which loses at most `u / sqrt(3)` times the result in the root mean square.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any

from jaxllm.interop.parity.numerics.precision import FLOAT32, Precision, precision_of

from .operations.constants import is_constant, marked
from .operations.grouped_product import grouped_product
from .operations.in_place import with_rounding
from .operations.scattered_sums import terms_of

if TYPE_CHECKING:
    from torch import Tensor

DRAWS = 4  # runs that show what rounding may do
# Largest error: a masked score, which is the smallest float or minus infinity, stays as it is.
LARGE = 1e30
SMALL = 1e-30  # divides in place of zero
POOL = 2**22  # random numbers that errors are taken from, at a random place for every operation

CAST = "aten::_to_copy"

# Functions of single elements that do not round.
EXACT = frozenset(
    f"aten::{name}"
    for name in (
        *("abs", "clamp", "clamp_max", "clamp_min", "clone", "fill", "masked_fill", "maximum"),
        *("minimum", "neg", "relu", "sign", "threshold", "threshold_backward", "where"),
        *("ceil", "floor", "round", "trunc"),
    )
)


@contextmanager
def simulated_rounding(seed: int) -> Iterator[None]:
    """Within this context, PyTorch's operations have additional rounding, except in float64.

    These are the operations that models of transformers and plain modules usually consist of:
    products, sums, norms, softmax, and functions of single elements, in place or not.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    # The fused kernels of attention do all of it in one operation.
    with sdpa_kernel(SDPBackend.MATH), _simulated_rounding()(Noise(seed)):
        yield


class Noise:
    """Random errors, the same for the same seed."""

    def __init__(self, seed: int):
        import torch

        self._generator = torch.Generator().manual_seed(seed)
        self._pool = FLOAT32.unit_roundoff * torch.randn(POOL, generator=self._generator)

    def added(self, value: "Tensor", deviation: "Tensor") -> "Tensor":
        """Returns the value with errors of this standard deviation, in units of its roundoff."""
        import torch

        precision = precision_of(value)
        if precision is not None and precision is not FLOAT32:
            times = precision.unit_roundoff / FLOAT32.unit_roundoff / math.sqrt(3)
            return self.added(value.float(), deviation.float() * times).to(value.dtype)
        moved = torch.empty_like(value, memory_format=torch.contiguous_format)
        parts = (value.reshape(-1), deviation.expand_as(value).reshape(-1), moved.view(-1))
        for before, size, after in zip(*(part.split(POOL // 2) for part in parts), strict=True):
            # Drawing numbers anew for every operation would take most of the time.
            room = POOL - len(before) + 1
            start = int(torch.randint(room, (), generator=self._generator))
            draw = self._pool[start : start + len(before)].to(before)
            torch.addcmul(before, size, draw, out=after)
        return moved


@cache
def _simulated_rounding() -> Callable[[Noise], AbstractContextManager[Any]]:
    """Returns the class of these contexts.

    Only one class: a class refers to itself, so that it and what it holds live for some time.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class SimulatedRounding(TorchDispatchMode):
        def __init__(self, noise: Noise):
            super().__init__()
            self.noise = noise

        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            given = kwargs or {}
            if func._schema.is_mutable:
                run = partial(self.__torch_dispatch__, types=types)
                return with_rounding(lambda f, a, k: run(f, args=a, kwargs=k), func, args, given)
            if is_constant(func, args, given):
                return marked(func(*args, **given))
            if func in _decompositions():
                with self:
                    return _decompositions()[func](*args, **given)
            result = func(*args, **given)
            if func is torch.ops.aten.mul.Tensor and result.dtype == torch.complex64:
                size = result.abs()[..., None]
                return torch.view_as_complex(self.noise.added(torch.view_as_real(result), size))
            precision = precision_of(result)
            if precision is None or result.numel() == 0:
                return result
            deviation = _deviation(func, args, given, result, precision)
            return result if deviation is None else self.noise.added(result, deviation)

    return SimulatedRounding


def _deviation(
    func: Any, args: tuple, given: Mapping[str, Any], result: "Tensor", precision: Precision
) -> Any:
    """Returns the standard deviation of the rounding error of a result, in units of roundoff.

    None if the operation does not round.
    """
    import torch

    name = func._schema.name
    is_narrow = precision is not FLOAT32
    if name in DEVIATIONS and not is_narrow:
        return DEVIATIONS[name](func, args, given, result)
    is_function = torch.Tag.pointwise in func.tags and name not in EXACT
    if is_function or (is_narrow and name in (*DEVIATIONS, CAST)):
        return result.float().clamp(-LARGE, LARGE)  # its sign does not matter
    return None


def _of_sum(total: "Tensor", squares: "Tensor", k: Any, *, products: bool = False) -> "Tensor":
    """Returns the deviation of a sum of `k` terms whose squares add up to `squares`."""
    per_square = k / 18 + (1 / 3 if products else 0)
    if isinstance(k, int | float):  # in place, since these arrays may be large
        return total.square().mul_(k / 9).add_(squares, alpha=per_square).sqrt_()
    return (total.square() * (k / 9) + squares * per_square).sqrt()


# The functions for each operation take the arguments of `_deviation`.


def _of_product(func: Any, args: tuple, given: Mapping[str, Any], result: "Tensor") -> "Tensor":
    import torch

    a, b = args[-2:]
    squares = torch.matmul(a.square(), b.square()) * given.get("alpha", 1) ** 2
    return _of_sum(result, squares, a.shape[-1], products=True)


def _of_reduction(func: Any, args: tuple, given: Mapping[str, Any], result: "Tensor") -> "Tensor":
    x, *others = args
    k = x.shape[others[0]] if func._schema.name == "aten::cumsum" else x.numel() / result.numel()
    squares = func(x.square(), *others, **given)
    return _of_sum(result, squares / k if func._schema.name == "aten::mean" else squares, k)


def _of_norm(func: Any, args: tuple, given: Mapping[str, Any], result: "Tensor") -> "Tensor":
    """The root of a sum has half its relative error."""
    x, *others = args
    squares = func(x.square(), *others, **given).square()
    of_sum = _of_sum(result.square(), squares, x.numel() / result.numel())
    return of_sum / (2 * result).clamp_min(SMALL)


def _of_lookup(func: Any, args: tuple, given: Mapping[str, Any], result: "Tensor") -> "Tensor":
    """The gradient of an embedding is a sum over the places of each token."""
    import torch

    gradient, tokens, vocab_size, *others = args
    squares = func(gradient.square(), tokens, vocab_size, *others)
    k = torch.bincount(tokens.flatten(), minlength=vocab_size).to(result.dtype)
    return _of_sum(result, squares, k[:, None])


def _of_scattered(
    func: Any, args: tuple, given: Mapping[str, Any], result: "Tensor"
) -> "Tensor | None":
    """Sums of single terms do not round."""
    terms = terms_of(func, args)
    if terms is None:
        return None
    return _of_sum(result, terms.squares, terms.number) * (terms.number > 1)


DEVIATIONS: Mapping[str, Callable[..., Any]] = {
    **{f"aten::{name}": _of_product for name in ("mm", "bmm", "addmm", "baddbmm")},
    **{f"aten::{name}": _of_reduction for name in ("sum", "mean", "cumsum")},
    **{f"aten::{name}": _of_scattered for name in ("index_add", "scatter_add", "index_put")},
    "aten::linalg_vector_norm": _of_norm,
    "aten::embedding_dense_backward": _of_lookup,
}


@lru_cache(maxsize=1)
def _decompositions() -> Mapping[Any, Callable[..., Any]]:
    """Returns operations that cancel inside, as functions of operations that round once."""
    import torch
    from torch._decomp import get_decompositions

    aten = torch.ops.aten
    found = get_decompositions(
        [
            *(aten._softmax, aten._softmax_backward_data),
            *(aten._log_softmax, aten._log_softmax_backward_data),
            *(aten.native_layer_norm, aten.native_layer_norm_backward),
            *(aten.mse_loss, aten.mse_loss_backward, aten.nll_loss_forward),
            *(aten.gelu_backward, aten.silu_backward, aten.logsumexp),
        ]
    )
    return {
        **found,
        aten._grouped_mm.default: grouped_product,
        aten.var_mean.correction: _var_mean,
    }


def _var_mean(
    x: "Tensor", dim: Any = None, *, correction: Any = None, keepdim: bool = False
) -> tuple["Tensor", "Tensor"]:
    """Returns the variance and the mean, as layer norms use them."""
    dims = list(range(x.ndim)) if dim is None else dim
    mean = x.mean(dims, keepdim=True)
    squares = (x - mean).square()
    k = squares.numel() // squares.sum(dims).numel()
    variance = squares.sum(dims, keepdim=keepdim) / (k - (1 if correction is None else correction))
    return variance, mean if keepdim else x.mean(dims)
