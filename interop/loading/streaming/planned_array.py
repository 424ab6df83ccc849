"""Arrays of a model that is to be loaded: how each is stored, and where it is placed."""

import math
from typing import NamedTuple

import numpy as np
from jax.sharding import Sharding

from jaxllm.interop.rules.axis_ranges import Sizes
from jaxllm.interop.rules.pattern import Side


class PlannedArray(NamedTuple):
    """An array of the model, how it is stored and where it is placed.

    Attributes:
        side: its name and dimensions, as in its rule.
        sizes: the sizes of the rule's axes.
        stored: the dtype in the checkpoint.
        dtype: the dtype on devices.
        sharding: where the array is placed.
    """

    side: Side
    sizes: Sizes
    stored: np.dtype
    dtype: np.dtype
    sharding: Sharding

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole array."""
        return self.side.shape(self.sizes)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return math.prod(self.shape) * self.dtype.itemsize
