"""An object store in memory, in place of those behind `gs://` and `s3://`."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem


class MemoryStore(MemoryFileSystem):
    """A file system of fsspec whose addresses have a bucket."""

    protocol = ("gs", "s3")
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.partition("://")[2].strip("/") if "://" in path else path.rstrip("/")


@contextmanager
def memory_store() -> Iterator[MemoryStore]:
    """Puts an empty store behind all addresses while the context lasts."""

    kind = type("Empty", (MemoryStore,), {"store": {}, "pseudo_dirs": [""]})
    system = kind()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(backend.fsspec_backend), "fs", lambda *_: system)
        yield system
