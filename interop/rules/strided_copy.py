"""Fast copies between arrays whose axes lie in different orders in memory."""

import numpy as np

# Tiles as wide as long: each of their rows, of one array or the other, is several cache lines.
TILE_ROWS = 512
TILE_ROW_BYTES = 512
PADDING_BYTES = 64  # rows a power of two apart would compete for a few cache lines


def copy_bits(source: np.ndarray, out: np.ndarray) -> None:
    """Copies `source` into `out` bit for bit; they may have any strides.

    A plain assignment between transposed arrays touches a new cache line for every element of one
    of them. Here tiles pass through a small buffer, which is written in the memory order of
    `source` and read in the memory order of `out`.

    Args:
        source: the array to copy.
        out: an array of the same shape and dtype.

    Raises:
        TypeError: the dtypes differ.
    """
    if source.dtype != out.dtype:
        raise TypeError(f"cannot copy bits of {source.dtype} into {out.dtype}")
    if source.dtype.itemsize in (1, 2, 4, 8):  # NumPy copies dtypes other than its own slowly
        bits = np.dtype(f"u{source.dtype.itemsize}")
        source, out = source.view(bits), out.view(bits)
    source, out = _merge_axes(source, out)
    if source.nbytes < TILE_ROWS * TILE_ROW_BYTES or _fastest(source) == _fastest(out):
        out[...] = source
    else:
        _copy_by_tiles(source, out)


def _copy_by_tiles(source: np.ndarray, out: np.ndarray) -> None:
    """Copies tile by tile, for arrays that differ in their fastest-varying axis."""
    columns = TILE_ROW_BYTES // source.itemsize
    along = _fastest(out)
    others = sorted(set(range(source.ndim)) - {along}, key=lambda axis: -abs(source.strides[axis]))
    source, out = (array.transpose([*others, along]) for array in (source, out))
    # A tile is part of the axis `along`, part of the axis `cut`, and all of the axes in between.
    cut, width = source.ndim - 2, 1
    while cut > 0 and source.shape[cut] * width <= columns:
        width *= source.shape[cut]
        cut -= 1
    step = max(columns // width, 1)
    shape = (TILE_ROWS, step * width + PADDING_BYTES // source.itemsize)
    buffer = np.empty(shape, source.dtype)
    last_first = (*range(1, source.ndim - cut), 0)
    for index in np.ndindex(source.shape[:cut]):
        for first in range(0, source.shape[cut], step):
            for row in range(0, source.shape[-1], TILE_ROWS):
                place = (*index, slice(first, first + step), ..., slice(row, row + TILE_ROWS))
                tile = source[place]
                held = buffer[: tile.shape[-1], : tile.size // tile.shape[-1]]
                held = held.reshape(tile.shape[-1], *tile.shape[:-1]).transpose(last_first)
                held[...] = tile
                out[place] = held


def _merge_axes(source: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns views with as few axes as possible: merges axes that are adjacent in both arrays."""
    axes = sorted(
        (axis for axis in range(source.ndim) if source.shape[axis] != 1),
        key=lambda axis: (-abs(source.strides[axis]), -abs(out.strides[axis])),
    )
    merged: list[tuple[int, int, int]] = []
    for axis in axes:
        size, steps = source.shape[axis], (source.strides[axis], out.strides[axis])
        if merged and merged[-1][1:] == (size * steps[0], size * steps[1]):
            merged[-1] = (merged[-1][0] * size, *steps)
        else:
            merged.append((size, *steps))
    shape = [size for size, _, _ in merged]
    strided = np.lib.stride_tricks.as_strided
    return (
        strided(source, shape, [step for _, step, _ in merged]),
        strided(out, shape, [step for _, _, step in merged]),
    )


def _fastest(array: np.ndarray) -> int:
    """Returns the axis with the smallest stride."""
    return int(np.argmin(np.abs(array.strides))) if array.ndim else 0
