"""The few system calls that network namespaces and TAP devices need and Python 3.11 does not have."""

import ctypes
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CLONE_NEWNET = 0x40000000
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02
TUN = Path("/dev/net/tun")
OWN_NAMESPACE = Path("/proc/thread-self/ns/net")

_libc = ctypes.CDLL(None, use_errno=True)


def new_namespace() -> int:
    """Move this thread into a new network namespace; return a descriptor that keeps it alive. Raises OSError."""
    _checked(_libc.unshare(CLONE_NEWNET))
    return os.open(OWN_NAMESPACE, os.O_RDONLY)


@contextmanager
def inside(namespace: Path) -> Iterator[None]:
    """Let this thread, and what it starts, live in another network namespace. Sockets stay where they were made."""
    home = os.open(OWN_NAMESPACE, os.O_RDONLY)
    try:
        there = os.open(namespace, os.O_RDONLY)
        try:
            _checked(_libc.setns(there, CLONE_NEWNET))
        finally:
            os.close(there)
        try:
            yield
        finally:
            _checked(_libc.setns(home, CLONE_NEWNET))
    finally:
        os.close(home)


def open_tap(name: str) -> int:
    """Make a TAP device in this thread's namespace; return its descriptor. The device goes with it. Raises OSError.

    Reads and writes are one Ethernet frame each behind a virtio-net header; TCP segmentation is left to us.
    """
    if not TUN.exists():
        TUN.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.mknod(TUN, 0o600 | stat.S_IFCHR, os.makedev(10, 200))
    tap = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        fcntl.ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    except OSError:
        os.close(tap)
        raise
    return tap


def _checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
