"""Batches from a socket: their beginnings, and their payloads, digested while they are in the processor's cache.

Each call waits, and lets go of the interpreter's lock, once for all that it does.
"""

import os
from collections.abc import Sequence
from ctypes import addressof, byref, c_char, c_uint64

from shared.kv.payloads.digests import SHORT_BYTES, side_by_side
from shared.kv.payloads.native import HeadParts, load_payload_kernels

_PEER_ENDED, _NOTHING_YET = -2, -3


class BatchHead:
    """Where the beginnings of a connection's batches come to lie: a header of one length, and records behind it.

    A header starts with `magic`, then the number of its records, little-endian in 4 bytes.
    """

    def __init__(self, magic: bytes, header_bytes: int, record_bytes: int, most: int) -> None:
        """No header has more than `most` records; one that says so is received without them."""
        self._buffer = bytearray(header_bytes + most * record_bytes)
        at = addressof(c_char.from_buffer(self._buffer))
        self.parts = HeadParts(at, header_bytes, record_bytes, most, int.from_bytes(magic, "little"), 0)
        self.header = memoryview(self._buffer)[:header_bytes]

    @property
    def is_here(self) -> bool:
        """Whether a beginning has come that nobody has taken."""
        return bool(self.parts.received)

    def expect(self) -> memoryview:
        """Return where the records go that the header announces, which was received by other means and can be one."""
        num_records = int.from_bytes(self.header[4:8], "little")
        self.parts.received = len(self.header) + num_records * self.parts.record_bytes
        return memoryview(self._buffer)[len(self.header) : self.parts.received]

    def take(self) -> memoryview:
        """Return the records of the beginning that has come, until the next one is received."""
        num_bytes, self.parts.received = self.parts.received, 0
        return memoryview(self._buffer)[len(self.header) : num_bytes]


def receive_head(fd: int, head: BatchHead) -> bool:
    """Wait on a blocking socket for the beginning of a batch; False where that cannot be done here.

    Raises `EOFError` when the peer ended before it, OSError for all else. While none comes it waits on, whatever time
    limit the socket has.
    """
    library = load_payload_kernels()
    if library is None:
        return False
    while (status := library.prfaas_receive_head(fd, byref(head.parts))) == _NOTHING_YET:
        pass
    _check(status)
    return True


def receive(
    fd: int, payloads: Sequence[memoryview], headers: Sequence[bytes] | None, head: BatchHead
) -> list[int] | None:
    """Fill payloads, one after the other, from a blocking socket, and return their digests as `digests` does.

    Without `headers` there are none to return. The beginning of the next batch is taken along if it is here already.
    None where that cannot be done here: nothing was received then. Raises `EOFError` when the peer has ended, OSError
    for all else, the socket's own time limit among it.
    """
    library = load_payload_kernels()
    if library is None or not payloads or (headers is not None and min(map(len, payloads)) <= SHORT_BYTES):
        return None
    joined, header_bytes = (None, 0) if headers is None else side_by_side(headers, len(payloads))
    found = (c_uint64 * (0 if headers is None else len(payloads)))()
    _check(library.prfaas_receive(fd, list(payloads), len(payloads), joined, header_bytes, found, byref(head.parts)))
    return list(found)


def _check(status: int) -> None:
    if status == _PEER_ENDED:
        raise EOFError("the peer has ended")
    if status:
        raise OSError(status, os.strerror(status))
