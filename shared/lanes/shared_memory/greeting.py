"""How a process gets the descriptor of a pool's memory, and what it checks before it believes it."""

import asyncio
import ctypes
import mmap
import os
import socket
import stat
import sys
from typing import NamedTuple

from shared.errors import LaneBroken
from shared.lanes.mapping import use_huge_pages
from shared.lanes.shared_memory.messages import HELLO, MAGIC, TOKEN_BYTES, WELCOME
from shared.proto import prfaas_pb2 as pb

_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_RETRY_S = 0.01
MAX_SIZE_BYTES = 1 << 47
"""More cannot be addressed."""


class Welcome(NamedTuple):
    """What a pool has given to a process: all of it is checked, and the receiver's to close."""

    connection: socket.socket
    number: int
    memory: mmap.mmap
    address: int
    size_bytes: int
    touched_bytes: int


async def greet(offer: pb.SharedMemoryOffer, timeout_s: float) -> Welcome:
    """Return a pool's memory. Raises `LaneBroken` when it cannot be had in time, or is not what it should be."""
    if not sys.platform.startswith("linux"):
        raise LaneBroken("memory can be shared on Linux only")
    if len(offer.token) != TOKEN_BYTES:
        raise LaneBroken("the pool's offer has no token")
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.setblocking(False)
        async with asyncio.timeout(timeout_s):
            await _connect(connection, offer.path)
            connection.send(HELLO.pack(MAGIC, offer.token))  # a new connection has room for it
            welcome, fd = await _receive(connection)
        try:
            return _checked(connection, welcome, fd)
        finally:
            os.close(fd)
    except BaseException as error:
        connection.close()
        if isinstance(error, (OSError, ValueError)):  # TimeoutError among them; a path may be too long
            raise LaneBroken(f"the pool's memory cannot be mapped: {str(error) or 'it does not answer'}") from None
        raise


async def _connect(connection: socket.socket, path: str) -> None:
    while True:
        try:
            connection.connect(path)
        except BlockingIOError:  # the pool's queue is full
            await asyncio.sleep(_RETRY_S)
        else:
            return


async def _receive(connection: socket.socket) -> tuple[bytes, int]:
    """Return the pool's welcome with its descriptor, which is the caller's to close."""
    data, fds = b"", list[int]()
    try:
        while len(data) < WELCOME.size:
            await _readable(connection)
            try:
                more, received, _flags, _address = socket.recv_fds(connection, WELCOME.size - len(data), 1, _CLOEXEC)
            except (BlockingIOError, InterruptedError):
                continue
            fds += received
            if not more:
                raise LaneBroken("the pool has refused this process")
            data += more
        if len(fds) != 1:
            raise LaneBroken(f"the pool has sent {len(fds)} descriptors of its memory")
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return data, fds[0]


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    is_readable = asyncio.Event()
    loop.add_reader(connection, is_readable.set)
    try:
        await is_readable.wait()
    finally:
        loop.remove_reader(connection)


def _checked(connection: socket.socket, welcome: bytes, fd: int) -> Welcome:
    """Map the memory. A page of it that is not there would kill this process: so it must be sealed at its size."""
    import fcntl  # absent where there is no memfd either

    magic, number, size_bytes, touched_bytes = WELCOME.unpack(welcome)
    if magic != MAGIC or not 0 < touched_bytes <= size_bytes <= MAX_SIZE_BYTES:
        raise LaneBroken("the pool's welcome is not one")
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size != size_bytes:
        raise LaneBroken(f"the pool's memory has {status.st_size} bytes, not {size_bytes}")
    if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        raise LaneBroken("the pool's memory may shrink")
    memory = mmap.mmap(fd, size_bytes)
    use_huge_pages(memory)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return Welcome(connection, number, memory, address, size_bytes, touched_bytes)
