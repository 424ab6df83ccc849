"""FLOPs and times of matmuls."""

import jax
import jax.numpy as jnp
import pytest

from jaxllm.distributed.devices import DEVICES
from jaxllm.train.planning.analytic.matmuls import matmul_flops, matmul_seconds
from jaxllm.train.planning.analytic.program import flatten

SIZES = {"fsdp": 1}
DEVICE = DEVICES["v5p"]


def _region(function, *shapes):
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return flatten(jax.make_jaxpr(function)(*args), "tpu")


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("ab,bc->ac", [(4, 6), (6, 10)], 2 * 4 * 6 * 10),
        ("abc,adc->abd", [(2, 4, 6), (2, 5, 6)], 2 * 2 * 4 * 5 * 6),
    ],
)
def test_matmul_flops(equation, shapes, expected):
    region = _region(lambda x, y: jnp.einsum(equation, x, y), *shapes)
    assert matmul_flops(region, SIZES) == expected


def test_loops_count_every_trip():
    region = _region(lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, None, 7)[0], (8, 8))
    assert matmul_flops(region, SIZES) == 7 * 2 * 8**3


def test_grouped_rows_meet_one_matrix_each():
    def function(rows, kernel):
        return jax.lax.ragged_dot(rows, kernel, jnp.array([5, 7], jnp.int32))

    assert matmul_flops(_region(function, (12, 6), (2, 6, 10)), SIZES) == 2 * 12 * 6 * 10


def test_a_matmul_takes_its_arithmetic_or_its_bytes_whichever_is_longer():
    large, thin = (
        _region(jnp.matmul, (8192, 8192), (8192, 8192)),
        _region(jnp.matmul, (1, 64), (64, 64)),
    )
    assert matmul_seconds(large, SIZES, DEVICE) == pytest.approx(2 * 8192**3 / DEVICE.flops)
    moved = 4 * (64 + 64 * 64 + 64)
    assert matmul_seconds(thin, SIZES, DEVICE) == pytest.approx(moved / DEVICE.hbm)
