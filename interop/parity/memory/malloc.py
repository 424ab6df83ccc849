"""Decides when the C library's allocator returns the memory of freed arrays to the system.

By default glibc keeps arrays below a size that it raises as arrays are freed, in fragments that
later arrays do not fit into. That wastes several times the memory of a model. The memory of larger
arrays it returns at once; the system then clears every page anew for the next array, which takes
as long as computing with it. NumPy has no setting for either, so `ctypes` calls glibc.
"""

import ctypes
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from jaxllm.distributed.host_facts import host_memory

# As in malloc.h: freed memory at the end of the heap that is kept; the size from which arrays are
# mapped separately; how many are.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
LARGE = 2**16  # bytes
MOST_ARRAYS = 65536  # glibc's default for M_MMAP_MAX
NEVER = -1  # for M_TRIM_THRESHOLD

_set_now = {M_MMAP_THRESHOLD: 2**25}  # bytes; glibc raises its own threshold up to this


def map_large_arrays() -> bool:
    """Maps every array of at least `LARGE` bytes separately, so that freeing it frees its pages.

    Returns:
        Whether the allocator supports the setting.
    """
    _set_now[M_MMAP_THRESHOLD] = LARGE
    return _set(M_MMAP_THRESHOLD, LARGE)


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Within this context, later arrays take the memory of freed ones, which stays allocated.

    `return_freed_memory` returns it all the same. No effect after `map_large_arrays`, which is for
    models that take most of the memory.
    """
    is_scarce = _set_now[M_MMAP_THRESHOLD] == LARGE
    if is_scarce:
        yield
        return
    _set(M_MMAP_MAX, 0)
    _set(M_TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        _set(M_MMAP_MAX, MOST_ARRAYS)
        _set(M_MMAP_THRESHOLD, _set_now[M_MMAP_THRESHOLD])
        _set(M_TRIM_THRESHOLD, 2 * _set_now[M_MMAP_THRESHOLD])  # glibc's own proportion
        return_freed_memory()


def return_freed_memory() -> bool:
    """Returns the whole pages between live arrays to the system, once.

    Returns:
        Whether the allocator can do so.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
    return malloc_trim is not None


def return_scarce_memory() -> None:
    """Calls `return_freed_memory` unless the host has more left than this process holds.

    What comes next may take as much again. Where that is left, the freed pages are kept: clearing
    them anew for the next arrays takes a tenth of the time of a comparison.
    """
    total, free = host_memory()
    try:
        with open("/proc/self/statm") as file:
            resident = int(file.read().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux
        total = None
    if total is None or free is None or min(free, total - resident) < resident:
        return_freed_memory()


def _set(option: int, value: int) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(option, value) == 1
