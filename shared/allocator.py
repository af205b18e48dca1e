"""What costs most about memory is the kernel's first page of it: keep what is freed, map what is needed next."""

import ctypes
import errno
import mmap
import sys
from functools import lru_cache

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h of glibc
_KEEP_BYTES = 1 << 30
_GROW_BYTES = 16 << 20
_MADV_POPULATE_WRITE = 23  # mman.h of Linux 5.14


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


def map_memory(address: int, num_bytes: int) -> int:
    """Map what is behind a part of a mapping as if it had been written to; what is in it stays.

    Other threads run meanwhile. Returns 0, or the error number why the kernel does not: memory is then taken at its
    first use.
    """
    madvise = _madvise()
    if madvise is None:
        return errno.ENOSYS
    first = address // mmap.PAGESIZE * mmap.PAGESIZE
    length = ctypes.c_size_t(address + num_bytes - first)
    while madvise(ctypes.c_void_p(first), length, _MADV_POPULATE_WRITE) != 0:
        if (code := ctypes.get_errno()) not in (errno.EINTR, errno.EAGAIN):
            return code
    return 0


@lru_cache(maxsize=1)
def _madvise() -> "ctypes._NamedFuncPointer | None":
    if not sys.platform.startswith("linux"):
        return None
    return ctypes.CDLL(None, use_errno=True).madvise
