"""Tells the C allocator to keep what is freed: buffers of 1 MiB come and go with every message."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h of glibc
_KEEP_BYTES = 1 << 30
_GROW_BYTES = 16 << 20


def keep_freed_memory() -> bool:
    """Serve large allocations from the heap and do not hand freed memory back; False where there is no glibc.

    By default glibc maps each buffer beyond 128 KiB afresh and unmaps it at `free`. Faulting those pages in costs more
    than everything else a frame goes through: streaming frames takes two to four times the CPU.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    limits = ((_M_MMAP_THRESHOLD, _KEEP_BYTES), (_M_TRIM_THRESHOLD, _KEEP_BYTES), (_M_TOP_PAD, _GROW_BYTES))
    return all(mallopt(name, value) == 1 for name, value in limits)
