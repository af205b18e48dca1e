"""Payloads from a socket in one call: whole, digested, with the end of the peer and its silence told apart."""

import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from shared.kv.payloads.digests import SHORT_BYTES, digest
from shared.kv.payloads.native import load_payload_kernels
from shared.kv.payloads.received import BatchHead, receive, receive_head

HEADERS = [bytes([number]) * 40 for number in range(200)]

pytestmark = pytest.mark.skipif(load_payload_kernels() is None, reason="no C compiler")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 5, 0))
    with near, far:
        yield near, far


MAGIC, HEADER_BYTES, RECORD_BYTES, MOST = b"Head", 24, 16, 100


def new_head() -> BatchHead:
    return BatchHead(MAGIC, HEADER_BYTES, RECORD_BYTES, MOST)


def head_of(num_records: int, magic: bytes = MAGIC) -> bytes:
    header = magic + num_records.to_bytes(4, "little")
    return header.ljust(HEADER_BYTES, b"h") + os.urandom(num_records * RECORD_BYTES)


def buffers(sizes: list[int]) -> list[memoryview]:
    return [memoryview(bytearray(size)) for size in sizes]


@pytest.mark.parametrize("sizes", [[241], [300] * 200, [70_000, 241, 1_500_000, 4096] * 10])
def test_payloads_are_filled_in_order_and_digested(sizes: list[int], pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    sent = [os.urandom(size) for size in sizes]
    writer = threading.Thread(target=far.sendall, args=(b"".join(sent) + b"rest",))
    writer.start()
    views = buffers(sizes)
    found = receive(near.fileno(), views, HEADERS[: len(sizes)], new_head())
    writer.join()
    assert [bytes(view) for view in views] == sent
    assert found == [digest(header, payload) for header, payload in zip(HEADERS, sent, strict=False)]
    assert near.recv(10) == b"rest", "more was read than the payloads"


def test_a_peer_that_ends_in_the_midst_is_told(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    far.sendall(bytes(500))
    far.close()
    with pytest.raises(EOFError):
        receive(near.fileno(), buffers([400, 400]), HEADERS[:2], new_head())


def test_a_peer_that_stops_in_the_midst_is_told(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 20_000))
    far.sendall(bytes(500))
    with pytest.raises(BlockingIOError):
        receive(near.fileno(), buffers([400, 400]), HEADERS[:2], new_head())


def test_what_is_too_short_is_left_to_others(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    far.sendall(b"x" * 500)
    assert receive(near.fileno(), buffers([400, SHORT_BYTES]), HEADERS[:2], new_head()) is None
    assert near.recv(600) == b"x" * 500, "nothing was read"


@pytest.mark.parametrize("num_records", [0, 1, MOST])
def test_a_beginning_comes_whole_and_nothing_after_it(
    num_records: int, pair: tuple[socket.socket, socket.socket]
) -> None:
    near, far = pair
    head, sent = new_head(), head_of(num_records)

    def trickle() -> None:
        for at in range(0, len(sent), 7):
            far.sendall(sent[at : at + 7])

    writer = threading.Thread(target=trickle)
    writer.start()
    assert receive_head(near.fileno(), head)
    writer.join()
    far.sendall(b"rest")
    assert head.header == sent[:HEADER_BYTES]
    assert head.take() == sent[HEADER_BYTES:]
    assert near.recv(10) == b"rest"


@pytest.mark.parametrize("sent", [head_of(MOST + 1)[:HEADER_BYTES], head_of(3, b"None")[:HEADER_BYTES]])
def test_what_is_no_header_is_not_believed(sent: bytes, pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    far.sendall(sent)
    head = new_head()
    assert receive_head(near.fileno(), head)
    assert head.header == sent
    assert not len(head.take())


def test_who_waits_for_a_beginning_waits_longer_than_within_one(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 20_000))
    begin = threading.Timer(0.1, far.sendall, [head_of(2)[:-1]])
    begin.start()
    with pytest.raises(BlockingIOError):
        receive_head(near.fileno(), new_head())
    begin.join()


@pytest.mark.parametrize("num_bytes", [0, HEADER_BYTES - 1, HEADER_BYTES + 1])
def test_a_peer_that_ends_before_a_beginning_or_within_it(
    num_bytes: int, pair: tuple[socket.socket, socket.socket]
) -> None:
    near, far = pair
    far.sendall(head_of(2)[:num_bytes])
    far.close()
    with pytest.raises(ConnectionResetError if num_bytes else EOFError):
        receive_head(near.fileno(), new_head())


@pytest.mark.parametrize("headers", [HEADERS[:2], None])
@pytest.mark.parametrize("missing", [0, 1, 2 * RECORD_BYTES + 1, 2 * RECORD_BYTES + HEADER_BYTES])
def test_the_next_beginning_comes_along_if_it_is_whole(
    missing: int, headers: list[bytes] | None, pair: tuple[socket.socket, socket.socket]
) -> None:
    near, far = pair
    head, sent = new_head(), head_of(2)
    payloads, views = [os.urandom(300), os.urandom(500)], buffers([300, 500])
    whole = b"".join(payloads) + sent
    far.sendall(whole[: len(whole) - missing])
    found = receive(near.fileno(), views, headers, head)
    assert [bytes(view) for view in views] == payloads
    assert found == ([] if headers is None else list(map(digest, headers, payloads)))
    assert head.is_here == (not missing)
    if missing:
        far.sendall(whole[len(whole) - missing :])
        assert receive_head(near.fileno(), head)
    assert head.take() == sent[HEADER_BYTES:]
