"""Float64: the reference's results without rounding, the truth of a comparison."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from jaxllm.interop.parity.alignment.references.overrides import attribute

from .operations import in_place
from .operations.constants import is_constant, marked
from .operations.grouped_product import grouped_product


@contextmanager
def in_float64() -> Iterator[None]:
    """Within this context, PyTorch computes in float64 whatever it would compute in less.

    Casts to float32 and narrower types become casts to float64, and every such tensor is widened
    where it is used, or written to. Constants, which depend on integers alone, are computed as
    always.
    """
    import torch
    from torch.nn.utils import parametrize
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_map

    narrow, wide = {torch.float32, torch.bfloat16, torch.float16}, torch.float64

    def widened(value: Any) -> Any:
        is_narrow = isinstance(value, torch.Tensor) and value.dtype in narrow
        return value.to(wide) if is_narrow else value

    class InFloat64(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            given = kwargs or {}
            if func._schema.is_mutable:
                return in_place.in_float64(func, args, given, widened)
            if is_constant(func, args, given):
                return marked(func(*args, **given))
            is_cast = given.get("dtype") in narrow
            given = given | {"dtype": wide} if is_cast else given
            args, given = tree_map(widened, args), tree_map(widened, given)
            if func is torch.ops.aten._grouped_mm.default:  # does not exist in float64
                func = grouped_product
            return func(*args, **given)

    # PEFT adds to the parameters of experts so, which then are in float64.
    register = partial(parametrize.register_parametrization, unsafe=True)
    unchecked = attribute(parametrize, "register_parametrization", register)
    with warnings.catch_warnings(), unchecked, InFloat64():
        # Norms: parameters stay in float32 until they are used.
        warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
        yield
