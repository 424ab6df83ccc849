"""Rounding of sums whose terms an index spreads over the result, as those of experts are."""

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Terms(NamedTuple):
    """The terms of each element of a sum: the sum of their squares, and their number."""

    squares: "Tensor"
    number: "Tensor"


def terms_of(func: Any, args: tuple) -> Terms | None:
    """Returns the terms of `index_add`, `scatter_add` and `index_put`; None if nothing is added."""
    import torch

    total, *places = args[:3] if func._schema.name == "aten::index_put" else args[:4]
    is_term = (total != 0).to(total.dtype)
    if func._schema.name == "aten::index_put":
        indices, values = places
        if not (len(args) > 3 and args[3]):
            return None
        squares = func(total.square(), indices, values.square(), True)
        return Terms(squares, func(is_term, indices, torch.ones_like(values), True))
    *where, values = places
    squares = func(total.square(), *where, values.square())
    return Terms(squares, func(is_term, *where, torch.ones_like(values)))
