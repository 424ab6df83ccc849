"""The C library's memory allocator, told to return large arrays to the system when they are freed.

NumPy has no setting for this, so `ctypes` calls `mallopt` of glibc.
"""

import ctypes

M_MMAP_THRESHOLD = -3  # as in malloc.h
LARGE = 2**16  # bytes


def return_freed_memory() -> bool:
    """Maps every array of at least `LARGE` bytes on its own, so that freeing it frees its pages.

    By default glibc raises this size as arrays are freed, and keeps what lies below it in fragments
    that later arrays do not fit into: by the size of the model more than is ever in use.

    Returns:
        Whether the allocator is one that takes the setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(M_MMAP_THRESHOLD, LARGE) == 1
