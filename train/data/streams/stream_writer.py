"""Writing a token stream, document by document: into memory, or into files as large as it gets."""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import IO, NamedTuple
from uuid import uuid4

import numpy as np

from .windows import TokenStream


class Encoded(NamedTuple):
    """The tokens of a document, and which of them are targets; None: all of them."""

    ids: Sequence[int]
    is_target: np.ndarray | None = None


class StreamWriter:
    """Writes documents one after the other.

    Args:
        dtype: of the tokens.
        file: the .npy file of the tokens, beside which the others lie; None: in memory.
        with_targets: whether documents say which of their tokens are targets.
    """

    def __init__(self, dtype: np.dtype, file: Path | None = None, *, with_targets: bool = False):
        self.file, self.num_documents, self.num_tokens = file, 0, 0
        self._starts: list[np.ndarray] = []
        arrays = {"tokens": dtype} | ({"targets": np.dtype(bool)} if with_targets else {})
        self._arrays = {
            name: _Growing(dtype, None if file is None else part_of(file, name))
            for name, dtype in arrays.items()
        }

    def add(self, documents: Sequence[Encoded]) -> None:
        """Appends documents."""
        ends = self.num_tokens + np.cumsum([0, *(len(each.ids) for each in documents)])
        self._starts.append(ends[:-1])
        self.num_documents, self.num_tokens = self.num_documents + len(documents), int(ends[-1])
        for each in documents:
            self._arrays["tokens"].append(each.ids)
            if "targets" in self._arrays:
                targets = np.ones(len(each.ids), bool) if each.is_target is None else each.is_target
                self._arrays["targets"].append(targets)

    def close(self) -> TokenStream:
        """Ends the stream and returns it; its files take their names, that of the tokens last."""
        starts = np.concatenate([np.zeros(0, np.int64), *self._starts])
        if self.file is not None:
            placed = _Growing(starts.dtype, part_of(self.file, "starts"))
            placed.append(starts)
            self._arrays["starts"] = placed
            lines = [f"{name} {array.digest}" for name, array in sorted(self._arrays.items())]
            replace_file(self.file.with_suffix(".digest"), "\n".join(lines).encode())
        found = {name: self._arrays[name].close() for name in sorted(self._arrays)}
        return TokenStream(found["tokens"], starts, found.get("targets"))

    def abandon(self) -> None:
        """Removes the files that were begun."""
        for array in self._arrays.values():
            array.abandon()


def part_of(file: Path, name: str) -> Path:
    """Returns the file of an array of a stream: `a.npy` has its tokens, `a.starts.npy` others."""
    return file if name == "tokens" else file.with_suffix(f".{name}.npy")


def replace_file(file: Path, content: bytes) -> None:
    """Writes a small file, which takes its name when it is whole."""
    unfinished = file.with_name(f"{file.name}.{uuid4().hex}")  # other processes may write it too
    unfinished.write_bytes(content)
    unfinished.replace(file)


class _Growing:
    """A one-dimensional array that is appended to, in memory or in a .npy file."""

    def __init__(self, dtype: np.dtype, file: Path | None):
        self._dtype, self._file, self._hash = np.dtype(dtype), file, blake2b(digest_size=16)
        self._chunks: list[np.ndarray] = []
        self._length = 0
        self._stream: IO[bytes] | None = None
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._unfinished = file.with_name(f"{file.name}.{uuid4().hex}")
            self._stream = self._unfinished.open("wb")
            self._write_header(self._stream)

    @property
    def digest(self) -> str:
        """The dtype and a hash of the content, as `batches.digest` has them."""
        return f"{self._dtype} {self._hash.hexdigest()}"

    def append(self, values: Sequence[int] | np.ndarray) -> None:
        """Appends values."""
        array = np.asarray(values, self._dtype)
        self._length += len(array)
        if self._stream is None:
            self._chunks.append(array)
        else:
            self._hash.update(array.data)
            self._stream.write(array.data)

    def close(self) -> np.ndarray:
        """Returns the array, memory-mapped if it is a file."""
        if self._stream is None or self._file is None:
            return np.concatenate([np.zeros(0, self._dtype), *self._chunks])
        self._stream.seek(0)
        self._write_header(self._stream)
        self._stream.close()
        self._unfinished.replace(self._file)
        return np.load(self._file, mmap_mode="r")

    def abandon(self) -> None:
        """Removes an unfinished file."""
        if self._stream is not None:
            self._stream.close()
            self._unfinished.unlink(missing_ok=True)

    def _write_header(self, stream: IO[bytes]) -> None:
        # NumPy leaves room in it for any length of an array that is one-dimensional.
        shape = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(stream, {**shape, "shape": (self._length,)})
