"""Arrays in several files, of which what is asked for is read, and their identity."""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxllm.errors import UserError
from jaxllm.train.data.batches import digest

from .windows import Tokens

SAMPLES, SAMPLE_BYTES = 64, 1 << 14  # of a file, by which a changed one is noticed


class Part(NamedTuple):
    """A one-dimensional array in a file."""

    file: Path
    dtype: np.dtype
    offset: int  # bytes before it
    length: int
    size: int  # bytes of the file
    sample: str  # see `sample_file`

    @property
    def identity(self) -> str:
        """A text that changes with the content, almost surely."""
        return f"{self.dtype} {self.length} {self.sample}"


class ShardedArray:
    """One array, whose parts are in files; each is mapped into memory when it is first read.

    Args:
        parts: in order.
        limit: one more than the largest number that may be read, such as a model's vocabulary.

    Raises:
        UserError: the parts have different types; on reading, a file is missing or has changed, or
            a number is not below the limit.
    """

    def __init__(self, parts: Sequence[Part], limit: int | None = None):
        if len(dtypes := {part.dtype for part in parts}) > 1:
            names = " and ".join(sorted(map(str, dtypes)))
            files = ", ".join(str(part.file) for part in parts[:3])
            raise UserError(f"the token files {files}, ... have different types: {names}")
        self.parts, self.limit = parts, limit
        self.dtype = parts[0].dtype if parts else np.dtype(np.uint8)
        self.ends = np.cumsum([part.length for part in parts], dtype=np.int64)
        self._opened: dict[int, np.ndarray] = {}
        self._stamps: dict[int, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, places: Any) -> np.ndarray:
        """Returns the items at these places: a slice, an index or an array of them."""
        if isinstance(places, slice):
            places = np.arange(*places.indices(len(self)))
        places = np.asarray(places)
        part = self.ends.searchsorted(places, side="right")
        found = np.empty(places.shape, self.dtype)
        for number in map(int, np.unique(part)):
            chosen = part == number
            first = self.ends[number] - self.parts[number].length
            found[chosen] = self.open_part(number)[places[chosen] - first]
            if self.limit is not None and found[chosen].max() >= self.limit:
                raise UserError(
                    f"{self.parts[number].file}: it has the token {found[chosen].max()}, but the "
                    f"model has {self.limit}: these are tokens of another tokenizer, or this is no "
                    "file of tokens"
                )
        return found

    @property
    def identity(self) -> str:
        """A text that changes with the content, almost surely."""
        parts = "\n".join(part.identity for part in self.parts)
        return f"{self.dtype} {blake2b(parts.encode(), digest_size=16).hexdigest()}"

    def open_part(self, number: int) -> np.ndarray:
        """Returns a part, mapped. Raises UserError if its file is missing or has changed.

        That is asked each time: what is read of a file that was cut short would end the process.
        """
        part = self.parts[number]
        self._check(number, part)
        if number not in self._opened:
            found: np.ndarray = np.zeros(0, part.dtype)
            if part.length:  # what is empty cannot be mapped
                found = np.memmap(
                    part.file, part.dtype, "r", offset=part.offset, shape=(part.length,)
                )
            self._opened[number] = found
        return self._opened[number]

    def _check(self, number: int, part: Part) -> None:
        """Raises UserError if the file of a part is missing or has other content than before."""
        try:
            now = part.file.stat()
            stamp = now.st_size, now.st_mtime_ns, now.st_ino
            if self._stamps.get(number) == stamp:
                return
            if now.st_size == part.size and sample_file(part.file) == part.sample:
                if self._stamps.get(number, stamp)[2] != stamp[2]:
                    self._opened.pop(number, None)  # another file of that name
                self._stamps[number] = stamp
                return
        except OSError as error:
            raise UserError(f"{part.file}: the token file is gone: {error.strerror}") from None
        raise UserError(
            f"{part.file}: the token file has changed: {now.st_size:,} bytes, which are not the "
            f"{part.size:,} that it had"
        )


class ShardedStarts(ShardedArray):
    """Where documents begin, by parts whose numbers count from the first token of their shard.

    Args:
        parts: one for each shard of tokens.
        shards: the tokens.
    """

    def __init__(self, parts: Sequence[Part], shards: ShardedArray):
        super().__init__(parts)
        lengths = np.array([part.length for part in shards.parts], np.int64)
        self._bases = shards.ends - lengths
        self._shard_ends = shards.ends

    def __getitem__(self, places: Any) -> np.ndarray:
        """Returns where documents begin, counted from the first token of all."""
        if isinstance(places, slice):
            places = np.arange(*places.indices(len(self)))
        base = self._bases[self.ends.searchsorted(np.asarray(places), side="right")]
        return super().__getitem__(places) + base

    def searchsorted(self, places: np.ndarray, side: str = "right") -> np.ndarray:
        """Returns for each token the number of documents that begin at it or before it."""
        shard = np.minimum(self._shard_ends.searchsorted(places, side="right"), len(self.parts) - 1)
        found = np.empty(places.shape, np.int64)
        for number in map(int, np.unique(shard)):
            chosen = shard == number
            within = self.open_part(number).searchsorted(
                places[chosen] - self._bases[number], side="right"
            )
            found[chosen] = within + self.ends[number] - self.parts[number].length
        return found


def sample_file(file: Path) -> str:
    """Returns a hash of evenly spaced parts of a file and its size: all of a small one."""
    size = file.stat().st_size
    found = blake2b(str(size).encode(), digest_size=16)
    with file.open("rb") as stream:
        if size <= SAMPLES * SAMPLE_BYTES:
            found.update(stream.read())
        else:
            for index in range(SAMPLES):
                stream.seek(index * (size - SAMPLE_BYTES) // (SAMPLES - 1))
                found.update(stream.read(SAMPLE_BYTES))
    return found.hexdigest()


def content_digest(array: Tokens) -> str:
    """Returns a text that identifies the content of an array, in memory or in files."""
    return array.identity if isinstance(array, ShardedArray) else digest(np.asarray(array))
