"""Products of groups of rows, each group with a matrix of its own."""

import jax
import jax.numpy as jnp
from jax import Array

BLOCK = 32  # rows: fewer are slower one by one, more are mostly padding where groups are small


@jax.custom_vjp
def project_groups(rows: Array, kernel: Array, counts: Array) -> Array:
    """The first `counts[0]` rows times `kernel[0]`, the next `counts[1]` times `kernel[1]`, ...

    In the dtype of `rows`, accumulated and returned in float32; zeros for rows past the last group.
    The kernel's gradient comes in the kernel's own dtype, not rounded to that of `rows` before.
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
    """Of each group, the sum of its rows' products with those of `dy`."""
    by_group = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())),
        lhs_ragged_dimensions=[0],
        rhs_group_dimensions=[],
    )
    return jax.lax.ragged_dot_general(
        rows, dy, counts, by_group, preferred_element_type=jnp.float32
    )


# XLA's CPU backend multiplies every row by every matrix and keeps what is asked: E times the work,
# and the memory. There a loop goes over blocks of rows of one group each. (1,024 rows, 256 by 512,
# 2 cores: 5 ms among 4 groups and 240 among 128, in blocks 2 and 10; `benchmarks/experts.py`.)


@jax.jit  # so that the loop is compiled once where layers run op by op as well
def _by_blocks(rows: Array, kernel: Array, counts: Array) -> Array:
    M, size = rows.shape[0], min(BLOCK, rows.shape[0])
    groups, starts, _, count = _blocks(counts, M, size)
    rows = jnp.pad(rows, ((0, size), (0, 0)))

    def one(i: Array, out: Array) -> Array:
        block = jax.lax.dynamic_slice_in_dim(rows, starts[i], size)
        own = kernel[groups[i]].astype(rows.dtype)
        y = jnp.dot(block, own, preferred_element_type=jnp.float32)
        # What is written past a group's end, the next block writes over.
        return jax.lax.dynamic_update_slice_in_dim(out, y, starts[i], 0)

    empty = jnp.zeros_like(rows, jnp.float32, shape=(M + size, kernel.shape[2]))
    out = jax.lax.fori_loop(0, count, one, empty)[:M]
    return jnp.where((jnp.arange(M) < counts.sum())[:, None], out, 0)


def _outer_by_blocks(rows: Array, dy: Array, counts: Array) -> Array:
    """The same as `_outer_ragged`."""
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
    """The group, first row and number of rows of each block of up to `size` rows; how many count.

    There are never more than `length // size` whole ones and one more for each group.
    """
    each = -(-counts // size)
    ends = jnp.cumsum(each)
    block = jnp.arange(length // size + counts.size)
    group = jnp.searchsorted(ends, block, side="right")
    stops = jnp.cumsum(counts)
    start = (stops - counts)[group] + (block - (ends - each)[group]) * size
    return group, start, jnp.minimum(size, stops[group] - start), ends[-1]
