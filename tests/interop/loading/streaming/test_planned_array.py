"""A planned array knows its shape and its size from the sizes of its axes."""

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from jaxllm.interop.loading.streaming.planned_array import PlannedArray
from jaxllm.interop.rules.pattern import Side


def test_shape_and_bytes():
    side, alone = Side.parse("x.kernel : D (N H)"), SingleDeviceSharding(jax.devices()[0])
    sizes = {"D": 3, "N": 2, "H": 5}
    array = PlannedArray(side, sizes, np.dtype(np.float64), np.dtype(np.float32), alone)
    assert (array.shape, array.nbytes) == ((3, 10), 120)
