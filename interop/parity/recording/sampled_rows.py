"""Both sides of a sampled recording, row by row: arrays of the positions that were kept."""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from .recording import Recording

Arrays = Mapping[str, np.ndarray]


class ModelRows(Mapping[str, np.ndarray]):
    """The model's activations at the kept positions of rows without padding, BT... by path.

    Has those of which the recording kept all elements of a position.
    """

    def __init__(self, recording: Recording, ours: Arrays):
        self._recording, self._ours = recording, ours

    def __getitem__(self, path: str) -> np.ndarray:
        if path not in self:
            raise KeyError(path)
        return self._rows(path)

    def __iter__(self) -> Iterator[str]:
        return (path for path in self._recording.arrays if path in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, path: object) -> bool:
        if path not in self._recording.arrays or path not in self._ours:
            return False
        array, shape_BT = self._ours[str(path)], self.shape_of(str(path))
        kept = math.prod(self._recording.arrays[str(path)].shape[1:])
        if array.ndim < 3 or array.shape[:2] != shape_BT or kept != math.prod(array.shape[2:]):
            return False
        return bool(self.rows_of(str(path)).any())

    def shape_of(self, path: str) -> tuple[int, ...]:
        """Returns the shape of the inputs whose positions an activation has."""
        name = "source" if self._recording.is_of_source(path) else "target"
        return self._recording.inputs.arrays[name].shape[:2]

    def rows_of(self, path: str) -> np.ndarray:
        """Returns whether each row is without padding."""
        mask_BT = self._recording.mask_of(path)
        if mask_BT is None:
            return np.ones(self.shape_of(path)[0], bool)
        return (mask_BT != 0).all(1)

    def _rows(self, path: str) -> np.ndarray:
        positions = self._positions(self.shape_of(path)[1])
        return self._ours[path][self.rows_of(path)][:, positions]

    def _positions(self, length: int) -> list[int]:
        sample = self._recording.sample
        assert sample is not None
        return [at for at in sample.positions if at < length]


class ReferenceRows(ModelRows):
    """The reference's activations, likewise."""

    def _rows(self, path: str) -> np.ndarray:
        shape_BT, whole = self.shape_of(path), self.rows_of(path)
        positions, mask_BT = self._positions(shape_BT[1]), self._recording.mask_of(path)
        is_kept_BT = np.zeros(shape_BT, bool)
        is_kept_BT[:, positions] = True
        if mask_BT is not None:
            is_kept_BT &= mask_BT != 0
        chosen = whole[np.nonzero(is_kept_BT)[0]]
        features = self._ours[path].shape[2:]
        return self._recording.arrays[path][chosen].reshape(whole.sum(), len(positions), *features)
