"""Payloads from a socket in one call: whole, digested, with the end of the peer and its silence told apart."""

import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from shared.kv.payloads.digests import SHORT_BYTES, digest
from shared.kv.payloads.native import load_payload_kernels
from shared.kv.payloads.received import receive

HEADERS = [bytes([number]) * 40 for number in range(200)]

pytestmark = pytest.mark.skipif(load_payload_kernels() is None, reason="no C compiler")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 5, 0))
    with near, far:
        yield near, far


def buffers(sizes: list[int]) -> list[memoryview]:
    return [memoryview(bytearray(size)) for size in sizes]


@pytest.mark.parametrize("sizes", [[241], [300] * 200, [70_000, 241, 1_500_000, 4096] * 10])
def test_payloads_are_filled_in_order_and_digested(sizes: list[int], pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    sent = [os.urandom(size) for size in sizes]
    writer = threading.Thread(target=far.sendall, args=(b"".join(sent) + b"rest",))
    writer.start()
    views = buffers(sizes)
    found = receive(near.fileno(), views, HEADERS[: len(sizes)])
    writer.join()
    assert [bytes(view) for view in views] == sent
    assert found == [digest(header, payload) for header, payload in zip(HEADERS, sent, strict=False)]
    assert near.recv(10) == b"rest", "more was read than the payloads"


def test_a_peer_that_ends_in_the_midst_is_told(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    far.sendall(bytes(500))
    far.close()
    with pytest.raises(EOFError):
        receive(near.fileno(), buffers([400, 400]), HEADERS[:2])


def test_a_peer_that_stops_in_the_midst_is_told(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 20_000))
    far.sendall(bytes(500))
    with pytest.raises(BlockingIOError):
        receive(near.fileno(), buffers([400, 400]), HEADERS[:2])


def test_what_is_too_short_is_left_to_others(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    far.sendall(b"x" * 500)
    assert receive(near.fileno(), buffers([400, SHORT_BYTES]), HEADERS[:2]) is None
    assert near.recv(600) == b"x" * 500, "nothing was read"
