"""A range of virtual memory that another process may map too, and what turns a part of it into memory that is there."""

import contextlib
import ctypes
import errno
import mmap
import os
import sys
import weakref

import numpy as np
from numpy.typing import NDArray

from shared.allocator import map_memory
from shared.errors import Overloaded, SettingsError

_UNKNOWN = (errno.EINVAL, errno.ENOSYS)
_NORESERVE = 0x4000 if sys.platform.startswith("linux") else 0  # mman.h; Python names it from 3.13 on


class MemoryRange:
    """One range of memory, as long as any view of it lives. Only what was touched takes memory of the machine.

    Shared memory is an anonymous file (memfd) which can neither shrink nor grow: whoever maps it never meets a page
    that has gone. Where the system has no such file, `fd` is None and the memory is this process's own.
    """

    def __init__(self, num_bytes: int, *, shared: bool) -> None:
        """Raises `SettingsError` when there is no room for so much, if only by address."""
        self.num_bytes = num_bytes
        self.fd: int | None = None
        try:
            if shared and sys.platform.startswith("linux"):
                self.fd = _sealed_file(num_bytes)
                self._close_fd = weakref.finalize(self, os.close, self.fd)
                self._memory = mmap.mmap(self.fd, num_bytes, flags=mmap.MAP_SHARED | _NORESERVE)
            else:
                flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
                self._memory = mmap.mmap(-1, num_bytes, flags=flags)
        except (OSError, OverflowError, ValueError) as error:
            raise SettingsError(f"{num_bytes} bytes cannot be mapped: {error}") from None
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        use_huge_pages(self._memory)

    def part(self, offset: int, num_bytes: int) -> NDArray[np.uint8]:
        """Return a part as an array that is the base of its own slices."""
        return np.frombuffer(self._memory, np.uint8, num_bytes, offset)

    def touch(self, offset: int, num_bytes: int) -> None:
        """Have memory behind a part; what is in it stays. Other threads run meanwhile.

        Raises `Overloaded` when the system has none. Where the kernel cannot be asked, a private part is taken at its
        first use.
        """
        code = map_memory(self.address + offset, num_bytes)
        if code in _UNKNOWN and self.fd is not None:
            try:
                os.posix_fallocate(self.fd, offset, num_bytes)
                code = 0
            except OSError as error:
                code = error.errno or errno.EIO
        if code and not (code in _UNKNOWN and self.fd is None):
            raise Overloaded(f"the system has no memory for payloads: {os.strerror(code)}")

    def close(self) -> None:
        """Close the descriptor; the memory stays for as long as there are views of it. Idempotent."""
        if self.fd is not None:
            self.fd = None
            self._close_fd()


def use_huge_pages(memory: mmap.mmap) -> None:
    """Have one fault for 2 MiB, not for each 4 KiB, where the kernel can."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)


def _sealed_file(num_bytes: int) -> int:
    import fcntl  # absent where there is no memfd either

    fd = os.memfd_create("prfaas-payloads", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, num_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd
