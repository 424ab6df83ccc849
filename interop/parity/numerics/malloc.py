"""Makes the C library's allocator return the memory of freed arrays to the system.

By default glibc keeps arrays below a size that it raises as arrays are freed, in fragments that
later arrays do not fit into. That wastes several times the memory of a model. NumPy has no setting
for this, so `ctypes` calls glibc.
"""

import ctypes

M_MMAP_THRESHOLD = -3  # as in malloc.h
LARGE = 2**16  # bytes


def map_large_arrays() -> bool:
    """Maps every array of at least `LARGE` bytes separately, so that freeing it frees its pages.

    Returns:
        Whether the allocator supports the setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(M_MMAP_THRESHOLD, LARGE) == 1


def return_freed_memory() -> bool:
    """Returns the whole pages between live arrays to the system, once.

    Returns:
        Whether the allocator can do so.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
    return malloc_trim is not None
