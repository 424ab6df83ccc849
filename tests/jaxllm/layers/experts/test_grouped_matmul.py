"""Grouped matmul equals the products of single rows, with bounded memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import examples
from tiny import relative_l2

from jaxllm.layers.experts import grouped_matmul
from jaxllm.layers.experts.grouped_matmul import BLOCK, project_groups

TOLERANCE = 2e-6  # relative L2, float32
D, F = 24, 40
COUNTS = {
    "few": [3, 0, 1, 8, 0],
    "one group": [0, 0, 2 * BLOCK, 0, 0],
    "many": [BLOCK, 1, 2 * BLOCK + 5, 0, BLOCK - 1],
    "none": [0, 0, 0],
}


@pytest.mark.parametrize("after", examples([0, 7], 7), ids=lambda after: f"{after} after")
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_grouped_matmul_equals_single_products(counts, after):
    """Covers values and gradients; the rows `after` the last group give zeros."""
    if sum(counts) + after == 0:
        after = 1
    rng = np.random.default_rng(0)
    M = sum(counts) + after
    rows, kernel, weight = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for shape in ((M, D), (len(counts), D, F), (M, F))
    )
    group = np.repeat(np.arange(len(counts)), counts)

    def both(product):
        value = lambda rows, kernel: jnp.vdot(product(rows, kernel), weight)  # noqa: E731
        return jax.jit(jax.value_and_grad(value, argnums=(0, 1)))(rows, kernel)

    def one_by_one(rows, kernel):
        own = jnp.einsum("MD,MDF->MF", rows[: sum(counts)], kernel[group])
        return jnp.pad(own, ((0, after), (0, 0)))

    out = project_groups(rows, kernel, jnp.asarray(counts))
    assert not np.any(out[sum(counts) :])
    grouped = both(lambda rows, kernel: project_groups(rows, kernel, jnp.asarray(counts)))
    plain = both(one_by_one)
    np.testing.assert_allclose(grouped[0], plain[0], rtol=1e-5)
    for ours, theirs in zip(grouped[1], plain[1], strict=True):
        np.testing.assert_array_less(
            np.linalg.norm(ours - theirs), TOLERANCE * np.linalg.norm(theirs) + 1e-30
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_equal_the_accelerator_formulation(dtype):
    """Compares with the formulation for accelerators, which also runs, slowly, on CPU."""
    counts = jnp.asarray(COUNTS["many"])
    M = int(counts.sum()) + 3
    rng = np.random.default_rng(0)
    rows, kernel, dy = (
        jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((M, D), (5, D, F), (M, F))
    )
    pairs = (
        (
            grouped_matmul._by_blocks(rows, kernel, counts),
            grouped_matmul._ragged(rows, kernel, counts),
        ),
        (
            grouped_matmul._outer_by_blocks(rows, dy, counts),
            grouped_matmul._outer_ragged(rows, dy, counts),
        ),
    )
    for ours, theirs in pairs:
        assert ours.dtype == theirs.dtype == jnp.float32
        assert relative_l2(ours, theirs) < TOLERANCE


def test_memory_does_not_grow_with_the_number_of_groups():
    """XLA's own lowering on CPU would store every row once per group."""
    M, few, many = 256, 4, 64

    def temporary(count: int) -> int:
        counts = jnp.full(count, M // count)
        shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((M, D), (count, D, F))]
        run = jax.jit(lambda rows, kernel: project_groups(rows, kernel, counts))
        return run.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert temporary(many) < temporary(few) + M * D * 4


def test_kernel_gradient_is_not_rounded_to_the_activation_dtype():
    """Sums in bfloat16 would stall: 1 + 1/512 rounds to 1."""
    rows = jnp.asarray([[1.0], [1 / 512]], jnp.bfloat16)
    kernel = jnp.ones((1, 1, 1))
    counts = jnp.asarray([2])
    gradient = jax.grad(lambda kernel: project_groups(rows, kernel, counts).sum())(kernel)
    assert gradient.dtype == jnp.float32
    assert float(gradient[0, 0, 0]) == 1 + 1 / 512
