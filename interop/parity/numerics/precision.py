"""Precisions: the dtypes that both sides may compute in, and how closely each can be judged."""

from collections.abc import Iterable
from typing import NamedTuple


class Precision(NamedTuple):
    """A floating-point dtype.

    Attributes:
        dtype: its name.
        unit_roundoff: half the distance from 1 to the next number.
        useful: a threshold of activations above this is too high to tell a mistake from rounding.
    """

    dtype: str
    unit_roundoff: float
    useful: float


FLOAT32 = Precision("float32", 2.0**-24, 1e-3)
PRECISIONS = {
    precision.dtype: precision
    for precision in (
        FLOAT32,
        Precision("float16", 2.0**-11, 0.02),
        Precision("bfloat16", 2.0**-8, 0.1),
    )
}


def precision_of(array: object) -> Precision | None:
    """Returns the precision of an array or tensor, or None if its dtype is none of them."""
    return PRECISIONS.get(dtype_name(array))


def dtype_name(array: object) -> str:
    """Returns the name of the dtype of an array or tensor, such as `float32`."""
    return str(getattr(array, "dtype", None)).removeprefix("torch.")


def computed_in(dtypes: Iterable[str]) -> Precision | None:
    """Returns the precision of a model whose parameters have these dtypes, or None.

    transformers keeps some parameters in float32 beside a narrower dtype.
    """
    found = set(dtypes)
    narrow = sorted(found - {FLOAT32.dtype}) or sorted(found)
    return PRECISIONS.get(narrow[0]) if len(narrow) == 1 else None
