"""Multi-process helpers: process 0 writes, all processes take part in gathers."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxllm.distributed.failing import FailedElsewhereError
from jaxllm.interop.formats.stored_tensor import CheckpointError


class OtherProcessError(CheckpointError, FailedElsewhereError):
    """Another process could not read or write a checkpoint."""


def is_first_process() -> bool:
    """Returns whether this process is process 0, which writes."""
    return jax.process_index() == 0


@contextmanager
def fail_together(together: bool) -> Iterator[None]:
    """Context in which an exception in one process raises in all of them.

    Without it, the other processes would wait forever for the one that failed.

    Args:
        together: whether several processes take part. If False, the context does nothing.

    Raises:
        OtherProcessError: another process failed.
    """
    if not together:
        yield
        return
    error: BaseException | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    failed = np.flatnonzero(multihost_utils.process_allgather(np.array(error is not None)))
    if error is not None:
        raise error
    if failed.size:
        raise OtherProcessError(f"process {failed[0]} failed: see its own error message")


def shared_name(together: bool) -> str:
    """Returns a unique name, the same in all processes if they act `together`."""
    name = uuid4()
    if together:
        words = multihost_utils.broadcast_one_to_all(np.frombuffer(name.bytes, np.uint32))
        name = UUID(bytes=np.asarray(words, np.uint32).tobytes())
    return name.hex
