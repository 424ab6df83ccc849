"""Functions of rows that are sorted by group, with parameters for each group, block by block.

A kernel that multiplies each group by its own matrix has to store what lies between two products
for as many rows as a device may receive, which is several times what it does receive. Here one loop
takes a block of rows through all products, and its number of steps is that of the blocks that there
are: other rows cost neither time nor, between the products, memory.
"""

import functools
import re
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

SMALLEST, LARGEST = 32, 1024  # rows of a block: smaller ones are slow, larger ones save little

Rows = tuple[Array, ...]  # arrays with the same rows


class RowFunction(Hashable, Protocol):
    """Maps a group's parameters and some of its rows to one result per row."""

    __call__: Callable[..., Array]


class Blocking(NamedTuple):
    """How rows are divided into blocks.

    How many blocks there are is data. A plan of a run, which has none, reads from the loop's name
    how many are expected: see `expected_times`.
    """

    size: int  # rows of a block
    expected: int  # number of blocks

    def name(self) -> str:
        """The name of a loop over the blocks."""
        return f"about_{self.expected}_times"


def expected_times(name: str) -> int | None:
    """Returns how often the loop of this name, or of this stack of names, is expected to run."""
    found = re.search(r"about_([0-9]+)_times", name)
    return None if found is None else int(found[1])


def blocking(rows: int, groups: int) -> Blocking:
    """Returns how rows should be divided, into blocks of a power of two.

    The last block of a group is half empty on average. If the groups are large enough, about an
    eighth of the rows that are computed, or less, are not there.

    Args:
        rows: expected number of rows of all groups.
        groups: their number.
    """
    even = max(rows // groups // 4, 1)
    size = min(max(1 << (even.bit_length() - 1), SMALLEST), LARGEST)
    return Blocking(size, -(-rows // size) + groups // 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def map_groups(
    function: RowFunction, blocking: Blocking, params: Any, rows: Rows, counts: Array
) -> Array:
    """Returns `function(params[g], *rows)` of the rows of each group g; others give zeros.

    The first `counts[0]` rows are of group 0, the next `counts[1]` of group 1, and so on. Matrices
    of `params` are rounded to the dtype of the rows, and their gradients are added up in float32.
    The backward pass computes the function again.

    Args:
        function: each of its results depends on one row.
        blocking: see the function `blocking`.
        params: a pytree of arrays with a leading dimension for the groups.
        rows: arrays of M rows.
        counts: rows of each group.
    """
    return _map(function, _within(blocking, rows), params, rows, counts)


def _forward(
    function: RowFunction, blocking: Blocking, params: Any, rows: Rows, counts: Array
) -> tuple[Array, tuple[Any, Rows, Array]]:
    return map_groups(function, blocking, params, rows, counts), (params, rows, counts)


def _backward(
    function: RowFunction, blocking: Blocking, saved: tuple[Any, Rows, Array], dout: Array
) -> tuple[Any, Rows, None]:
    params, rows, counts = saved
    return *_transpose(function, _within(blocking, rows), params, rows, counts, dout), None


map_groups.defvjp(_forward, _backward)


def _within(blocking: Blocking, rows: Rows) -> Blocking:
    return blocking._replace(size=min(blocking.size, rows[0].shape[0]))


@functools.partial(jax.jit, static_argnums=(0, 1))  # compiled once even if layers run op by op
def _map(
    function: RowFunction, blocking: Blocking, params: Any, rows: Rows, counts: Array
) -> Array:
    M, rounded, size = rows[0].shape[0], _rounded(params, rows), blocking.size
    blocks = Blocks(counts, M, size)
    padded = blocks.pad(rows)
    shapes = jax.eval_shape(function, blocks.params(0, rounded, params), *blocks.take(0, padded))

    def one(i: Array, out: Array) -> Array:
        y = function(blocks.params(i, rounded, params), *blocks.take(i, padded))
        return blocks.put(i, y, out)

    out = jnp.zeros_like(rows[0], shapes.dtype, shape=(M + size, *shapes.shape[1:]))
    with jax.named_scope(blocking.name()):
        return blocks.cut(jax.lax.fori_loop(0, blocks.count, one, out))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _transpose(
    function: RowFunction,
    blocking: Blocking,
    params: Any,
    rows: Rows,
    counts: Array,
    dout: Array,
) -> tuple[Any, Rows]:
    """Returns the gradients of the parameters and of the rows."""
    rounded = _rounded(params, rows)
    blocks = Blocks(counts, rows[0].shape[0], blocking.size)
    padded, padded_dout = blocks.pad(rows), blocks.pad((dout,))

    def one(i: Array, sums: tuple[Any, Rows]) -> tuple[Any, Rows]:
        own = blocks.params(i, rounded, params)
        _, transposed = jax.vjp(function, own, *blocks.take(i, padded))
        dparams, *drows = transposed(*blocks.take(i, padded_dout))
        return (
            jax.tree.map(functools.partial(_add_at, blocks.groups[i]), sums[0], dparams),
            tuple(blocks.put(i, one, total) for total, one in zip(sums[1], drows, strict=True)),
        )

    zero = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), params), blocks.zeros(rows)
    with jax.named_scope(blocking.name()):
        dparams, drows = jax.lax.fori_loop(0, blocks.count, one, zero)
    dparams = jax.tree.map(lambda dx, x: dx.astype(x.dtype), dparams, params)
    return dparams, tuple(blocks.cut(dx) for dx in drows)


def _add_at(i: Array, total: Array, one: Array) -> Array:
    """Adds to one group's sum in place; of `total.at[i].add` XLA makes copies of the whole sum."""
    own = jax.lax.dynamic_index_in_dim(total, i, 0, keepdims=False)
    return jax.lax.dynamic_update_index_in_dim(total, own + one, i, 0)


def _rounded(params: Any, rows: Rows) -> Any:
    """Rounds each group's matrices to the dtype of the rows; biases stay as they are."""
    return jax.tree.map(lambda x: x.astype(rows[0].dtype) if x.ndim > 2 else x, params)


class Blocks:
    """Division of groups into blocks of up to `size` rows.

    There are at most `length // size` full blocks, and one partial block per group.
    """

    def __init__(self, counts: Array, length: int, size: int):
        each = -(-counts // size)
        ends = jnp.cumsum(each)
        block = jnp.arange(length // size + counts.size)
        group = jnp.searchsorted(ends, block, side="right")
        self.groups = jnp.minimum(group, counts.size - 1)
        before = (block - (ends - each)[self.groups]) * size
        self.starts = (jnp.cumsum(counts) - counts)[self.groups] + before
        self.lengths = jnp.minimum(counts[self.groups] - before, size)
        self.count = ends[-1]  # of the blocks that there are
        self.total, self.size = counts.sum(), size

    def params(self, i: Array | int, rounded: Any, params: Any) -> Any:
        """Returns the parameters of a block's group, in the dtypes that they came in."""
        return jax.tree.map(lambda x, given: x[self.groups[i]].astype(given.dtype), rounded, params)

    def take(self, i: Array | int, padded: Rows) -> Rows:
        """Returns the rows of a block; those of the next group are zeros."""
        is_own = (jnp.arange(self.size) < self.lengths[i])[:, None]
        taken = (jax.lax.dynamic_slice_in_dim(x, self.starts[i], self.size) for x in padded)
        return tuple(jnp.where(is_own, x, 0) for x in taken)

    def put(self, i: Array, y: Array, out: Array) -> Array:
        """Writes a block's results. Those past the group's end are replaced by the next block's."""
        return jax.lax.dynamic_update_slice_in_dim(out, y, self.starts[i], 0)

    def pad(self, rows: Rows) -> Rows:
        """Adds rows of zeros, for a block that begins with the last row."""
        return tuple(jnp.pad(x, ((0, self.size), (0, 0))) for x in rows)

    def zeros(self, rows: Rows) -> Rows:
        """Returns zeros of the shape that `pad` returns."""
        return tuple(jnp.zeros_like(x, shape=(x.shape[0] + self.size, *x.shape[1:])) for x in rows)

    def cut(self, out: Array) -> Array:
        """Undoes `pad`; rows of no group become zeros."""
        out = out[: -self.size]
        return jnp.where((jnp.arange(out.shape[0]) < self.total)[:, None], out, 0)
