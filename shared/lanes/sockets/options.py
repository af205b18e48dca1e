"""What clients and ends of a link are told, and what their sockets are."""

import socket
import struct
import sys
from dataclasses import dataclass
from typing import NamedTuple


class LaneOffer(NamedTuple):
    """What a pool tells those who may connect."""

    port: int  # on the host that serves its calls
    token: bytes
    max_connections: int  # of one link


@dataclass(frozen=True)
class LinkOptions:
    """How one end of a link behaves; the other end may differ."""

    verify: bool = False  # checksums of what arrives, in the thread that received it
    max_unread_bytes: int = 64 << 20  # received and not yet consumed; a single batch may be larger
    stall_s: float = 10.0  # a batch that does not move for this long breaks its link
    unsent_bytes: int = 256 << 10  # that the kernel holds beyond what the path takes: it delays what is more urgent


def set_options(sock: socket.socket, options: LinkOptions) -> None:
    """Prepare a connected TCP socket; what a platform lacks is left out. Buffers grow by the kernel's own rules."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    seconds = max(1, round(options.stall_s))
    for name, value in (
        ("TCP_KEEPIDLE", seconds),
        ("TCP_KEEPINTVL", max(1, seconds // 3)),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", max(1, round(options.stall_s * 1000))),
        ("TCP_NOTSENT_LOWAT", options.unsent_bytes),
    ):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def set_timeouts(sock: socket.socket, seconds: float) -> None:
    """Let each system call wait for this long while the socket stays a blocking one, which Python's timeouts do not."""
    whole = int(seconds)
    timeval = struct.pack("@ll" if sys.platform != "darwin" else "@qi4x", whole, int((seconds - whole) * 1e6))
    sock.setblocking(True)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
