"""What the C library does with freed memory while a rank trains on the CPU."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt` (glibc's malloc.h)."""
_LARGEST_MMAP_THRESHOLD = 32 << 20
"""Bytes; glibc accepts no more on 64 bits."""


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees; whether the C library can (glibc).

    A backward pass frees its activations from the top of the heap downwards, and glibc hands
    that memory back to the kernel at once; the next pass gets it again page by page, cleared: a
    tenth of a toy step's time. Kept, the process stays at the size of its peak. For the whole
    process; allocations above 32 MiB are returned as before.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # -1 as a threshold: never.
    return bool(mallopt(_TRIM_THRESHOLD, -1) and mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD))
