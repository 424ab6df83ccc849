"""Several processes at one thing: the first writes, all gather."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxllm.interop.formats.stored_tensor import CheckpointError


def is_first_process() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


@contextmanager
def fail_together(together: bool) -> Iterator[None]:
    """What fails in one process fails in all, so that none waits for another in vain."""
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
        raise CheckpointError(f"process {failed[0]} could not go on: its own message says why")


def shared_name(together: bool) -> str:
    """A name that no other attempt has, the same in all processes."""
    name = uuid4()
    if together:
        words = multihost_utils.broadcast_one_to_all(np.frombuffer(name.bytes, np.uint32))
        name = UUID(bytes=np.asarray(words, np.uint32).tobytes())
    return name.hex
