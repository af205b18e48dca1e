"""How a connection begins: the client names the token and the link that it belongs to, the server answers."""

import hmac
import struct
from enum import IntEnum
from typing import NamedTuple, Protocol

from shared.deadline import Deadline
from shared.errors import LaneBroken

TOKEN_BYTES = 32
NEW_LINK = 0

_MAGIC = b"PfL1"
_HELLO = struct.Struct(f"<4s{TOKEN_BYTES}sQ")  # magic, token, number of the link
_ANSWER = struct.Struct("<4sB3xQ")  # magic, status, number of the link


class HelloSocket(Protocol):
    """What first words are spoken on: a socket, or one with TLS above it."""

    def settimeout(self, seconds: float, /) -> None: ...

    def sendall(self, data: bytes, /) -> None: ...

    def recv(self, num_bytes: int, /) -> bytes: ...


class HelloStatus(IntEnum):
    """What a server makes of a connection."""

    WELCOME = 0
    WRONG_TOKEN = 1
    UNKNOWN_LINK = 2  # it has ended, or never was
    FULL = 3  # no more connections: of this link, or of all
    FORBIDDEN = 4  # by its certificate


class HelloAnswer(NamedTuple):
    """The server's first words."""

    status: HelloStatus
    link: int  # NEW_LINK unless the connection is welcome


def send_hello(line: HelloSocket, token: bytes, link: int, deadline: Deadline) -> None:
    """Say which link a connection is for: `NEW_LINK` for the first of its link. Raises OSError."""
    line.settimeout(max(deadline.remaining(), 1e-3))
    line.sendall(_HELLO.pack(_MAGIC, token, link))


def receive_hello(line: HelloSocket, token: bytes, deadline: Deadline) -> int | None:
    """Return the link that a client names; None when its token is another one.

    Raises OSError when it says nothing in time, `LaneBroken` when this is no client.
    """
    magic, theirs, link = _HELLO.unpack(_receive(line, _HELLO.size, deadline))
    if magic != _MAGIC:
        raise LaneBroken("what connected speaks something else")
    return int(link) if hmac.compare_digest(theirs, token) else None


def send_answer(line: HelloSocket, answer: HelloAnswer, deadline: Deadline) -> None:
    """HelloAnswer a hello. Raises OSError."""
    line.settimeout(max(deadline.remaining(), 1e-3))
    line.sendall(_ANSWER.pack(_MAGIC, answer.status, answer.link))


def receive_answer(line: HelloSocket, deadline: Deadline) -> HelloAnswer:
    """Return what the server made of a hello. Raises OSError, or `LaneBroken` when this is no server of lanes."""
    magic, status, link = _ANSWER.unpack(_receive(line, _ANSWER.size, deadline))
    if magic != _MAGIC or status not in HelloStatus._value2member_map_:
        raise LaneBroken("what listens there speaks something else")
    return HelloAnswer(HelloStatus(status), link)


def _receive(line: HelloSocket, num_bytes: int, deadline: Deadline) -> bytes:
    data = b""
    while len(data) < num_bytes:
        line.settimeout(max(deadline.remaining(), 1e-3))
        part = line.recv(num_bytes - len(data))
        if not part:
            raise ConnectionResetError("the connection ended in its first words")
        if deadline.expired:
            raise TimeoutError("the first words took too long")
        data += part
    return data
