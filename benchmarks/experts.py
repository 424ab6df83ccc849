"""Expert matmuls and their gradients, for few and many experts: jaxllm against `ragged_dot`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from side_by_side import Comparison, compare

from jaxllm.layers.experts.grouped_rows import blocking, map_groups
from jaxllm.layers.linear import project

ROWS, D, F = 1024, 256, 512
# Target ratio by number of experts, on CPU. On an accelerator none is asked for.
TARGETS = {8: 1.5, 128: 5.0}


def run(rounds: int) -> list[Comparison]:
    """Measures the same rows with few and with many experts."""
    return [_compare(count, rounds) for count in TARGETS]


def one_product(kernel: jax.Array, rows: jax.Array) -> jax.Array:
    """The product of rows with one expert's kernel."""
    return project("MD,DF->MF", rows, kernel)


def by_blocks(rows: jax.Array, kernel: jax.Array, counts: jax.Array) -> jax.Array:
    """The products of rows with their experts' kernels."""
    blocks = blocking(ROWS, kernel.shape[0])
    return map_groups(one_product, blocks, kernel, (rows,), counts)


def _compare(num_experts: int, rounds: int) -> Comparison:
    rng = np.random.default_rng(0)
    rows, kernel = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for shape in ((ROWS, D), (num_experts, D, F))
    )
    counts = jnp.bincount(jnp.asarray(rng.integers(0, num_experts, ROWS)), length=num_experts)

    def timed(product: Callable) -> Callable[[], object]:
        loss = lambda rows, kernel: jnp.square(product(rows, kernel, counts)).sum()  # noqa: E731
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
        return lambda: jax.block_until_ready(gradient(rows, kernel))

    return compare(
        f"products of {ROWS} rows among {num_experts} experts, and gradients",
        timed(by_blocks),
        timed(jax.lax.ragged_dot),
        rounds=rounds,
        target=TARGETS[num_experts] if jax.default_backend() == "cpu" else 0.0,
    )
