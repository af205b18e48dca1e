"""Payloads from a socket, digested while they are in the processor's cache."""

import os
from collections.abc import Sequence
from ctypes import c_uint64

from shared.kv.payloads.digests import SHORT_BYTES, side_by_side
from shared.kv.payloads.native import load_payload_kernels

_PEER_ENDED = -2


def receive(fd: int, payloads: Sequence[memoryview], headers: Sequence[bytes]) -> list[int] | None:
    """Fill payloads, one after the other, from a blocking socket; return their digests as `digests` does.

    The interpreter's lock is let go of once for all of them. None where that cannot be done here: nothing was received
    then. Raises `EOFError` when the peer has ended, OSError for all else, the socket's own time limit among it.
    """
    library = load_payload_kernels()
    if library is None or not payloads or min(map(len, payloads)) <= SHORT_BYTES:
        return None
    joined, header_bytes = side_by_side(headers, len(payloads))
    found = (c_uint64 * len(payloads))()
    status = library.prfaas_receive(fd, list(payloads), len(payloads), joined, header_bytes, found)
    if status == _PEER_ENDED:
        raise EOFError("the peer has ended")
    if status:
        raise OSError(status, os.strerror(status))
    return list(found)
