"""Grouped matmul: each group of rows is multiplied by its own matrix."""

import jax
import jax.numpy as jnp
from jax import Array

BLOCK = 32  # rows; smaller blocks are slower, larger ones are mostly padding for small groups


@jax.custom_vjp
def project_groups(rows: Array, kernel: Array, counts: Array) -> Array:
    """Multiplies each group of rows by its own matrix.

    The first `counts[0]` rows are multiplied by `kernel[0]`, the next `counts[1]` by `kernel[1]`,
    and so on.

    Computes in the dtype of `rows`, accumulated and returned in float32. Rows past the last group
    give zeros. The kernel's gradient has the kernel's own dtype and is not first rounded to that of
    `rows`.

    Args:
        rows: (M, D), sorted by group.
        kernel: (E, D, F), a matrix for each group.
        counts: (E,), rows per group.

    Returns:
        The products, (M, F).
    """
    return jax.lax.platform_dependent(rows, kernel, counts, cpu=_by_blocks, default=_ragged)


def _project_groups_forward(
    rows: Array, kernel: Array, counts: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    return project_groups(rows, kernel, counts), (rows, kernel, counts)


def _project_groups_backward(
    saved: tuple[Array, Array, Array], dy: Array
) -> tuple[Array, Array, None]:
    rows, kernel, counts = saved
    dy = dy.astype(rows.dtype)
    drows = project_groups(dy, kernel.swapaxes(1, 2), counts)
    dkernel = jax.lax.platform_dependent(
        rows, dy, counts, cpu=_outer_by_blocks, default=_outer_ragged
    )
    return drows.astype(rows.dtype), dkernel.astype(kernel.dtype), None


project_groups.defvjp(_project_groups_forward, _project_groups_backward)


def _ragged(rows: Array, kernel: Array, counts: Array) -> Array:
    return jax.lax.ragged_dot(
        rows, kernel.astype(rows.dtype), counts, preferred_element_type=jnp.float32
    )


def _outer_ragged(rows: Array, dy: Array, counts: Array) -> Array:
    """Returns the sum of outer products of `rows` and `dy` over each group's rows, (E, D, F)."""
    by_group = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())),
        lhs_ragged_dimensions=[0],
        rhs_group_dimensions=[],
    )
    return jax.lax.ragged_dot_general(
        rows, dy, counts, by_group, preferred_element_type=jnp.float32
    )


# XLA's CPU backend multiplies every row by every matrix and selects from the results: E times the
# work and the memory. On CPU, a loop over blocks of rows, of one group each, replaces it. (1,024
# rows, 256 by 512, 2 cores: XLA takes 5 ms with 4 groups and 240 ms with 128; blocks take 2 and
# 10 ms; `benchmarks/experts.py`.)


@jax.jit  # compiles the loop only once even if layers run op by op
def _by_blocks(rows: Array, kernel: Array, counts: Array) -> Array:
    M, size = rows.shape[0], min(BLOCK, rows.shape[0])
    groups, starts, _, count = _blocks(counts, M, size)
    rows = jnp.pad(rows, ((0, size), (0, 0)))

    def one(i: Array, out: Array) -> Array:
        block = jax.lax.dynamic_slice_in_dim(rows, starts[i], size)
        own = kernel[groups[i]].astype(rows.dtype)
        y = jnp.dot(block, own, preferred_element_type=jnp.float32)
        # Rows written past a group's end are overwritten by the next block.
        return jax.lax.dynamic_update_slice_in_dim(out, y, starts[i], 0)

    empty = jnp.zeros_like(rows, jnp.float32, shape=(M + size, kernel.shape[2]))
    out = jax.lax.fori_loop(0, count, one, empty)[:M]
    return jnp.where((jnp.arange(M) < counts.sum())[:, None], out, 0)


def _outer_by_blocks(rows: Array, dy: Array, counts: Array) -> Array:
    """Computes the same as `_outer_ragged`, in blocks."""
    M, size = rows.shape[0], min(BLOCK, rows.shape[0])
    groups, starts, lengths, count = _blocks(counts, M, size)
    rows, dy = (jnp.pad(x, ((0, size), (0, 0))) for x in (rows, dy))

    def one(i: Array, out: Array) -> Array:
        is_own = (jnp.arange(size) < lengths[i])[:, None]
        pair = (jax.lax.dynamic_slice_in_dim(x, starts[i], size) for x in (rows, dy))
        own = (jnp.where(is_own, x, 0) for x in pair)
        product = jnp.einsum("MD,MF->DF", *own, preferred_element_type=jnp.float32)
        return out.at[groups[i]].add(product)

    shape = (counts.size, rows.shape[1], dy.shape[1])
    return jax.lax.fori_loop(0, count, one, jnp.zeros_like(rows, jnp.float32, shape=shape))


def _blocks(counts: Array, length: int, size: int) -> tuple[Array, Array, Array, Array]:
    """Divides groups into blocks of up to `size` rows.

    There are at most `length // size` full blocks, and one partial block per group.

    Returns:
        The group, first row and number of rows of each block, and the number of valid blocks.
    """
    each = -(-counts // size)
    ends = jnp.cumsum(each)
    block = jnp.arange(length // size + counts.size)
    group = jnp.searchsorted(ends, block, side="right")
    stops = jnp.cumsum(counts)
    start = (stops - counts)[group] + (block - (ends - each)[group]) * size
    return group, start, jnp.minimum(size, stops[group] - start), ends[-1]
