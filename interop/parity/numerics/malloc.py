"""Makes the C library's allocator return the memory of large arrays to the system when freed.

NumPy has no setting for this, so `ctypes` calls glibc's `mallopt`.
"""

import ctypes

M_MMAP_THRESHOLD = -3  # as in malloc.h
LARGE = 2**16  # bytes


def return_freed_memory() -> bool:
    """Maps every array of at least `LARGE` bytes separately, so that freeing it frees its pages.

    By default glibc raises this threshold as arrays are freed, and keeps smaller arrays in
    fragments that later arrays do not fit into. That wastes as much memory as the model takes.

    Returns:
        Whether the allocator supports the setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(M_MMAP_THRESHOLD, LARGE) == 1
