"""Bytes in and out of a socket: whole, in parts of any number, and an error when nothing moves or the peer goes."""

import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.lanes.sockets.options import LinkOptions, set_options
from shared.lanes.sockets.transport import PlainTransport, after
from tests.support.waiting import LIMIT_S


@given(st.lists(st.binary(max_size=5), max_size=6), st.integers(0, 30))
def test_what_is_left_of_parts(parts: list[bytes], num_bytes: int) -> None:
    left = after([memoryview(part) for part in parts], num_bytes)
    assert b"".join(left) == b"".join(parts)[num_bytes:]
    assert not left or len(left[0])


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    with one, other:
        yield one, other


def test_more_parts_than_a_call_takes_and_more_bytes_than_a_buffer(pair: tuple[socket.socket, socket.socket]) -> None:
    options = LinkOptions()
    for sock in pair:
        set_options(sock, options)
    near, far = (PlainTransport(sock, options) for sock in pair)
    parts = [bytes([number % 251]) * (number % 17_000 + 1) for number in range(3000)]
    sending = threading.Thread(target=near.send, args=(parts,))
    sending.start()
    data = bytearray(sum(map(len, parts)))
    view = memoryview(data)
    far.receive([view[at : at + 9001] for at in range(0, len(data), 9001)], is_start=True)
    sending.join()
    assert data == b"".join(parts)


def test_a_peer_that_takes_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    transport = PlainTransport(pair[0], LinkOptions(stall_s=0.1))
    with pytest.raises(TimeoutError):
        transport.send([bytes(64 << 20)])


def test_a_peer_that_stops_or_goes(pair: tuple[socket.socket, socket.socket]) -> None:
    transport = PlainTransport(pair[0], LinkOptions(stall_s=0.1))
    view = memoryview(bytearray(10))
    pair[1].sendall(b"12345")
    with pytest.raises(TimeoutError):
        transport.receive([view], is_start=True)
    pair[1].sendall(b"12345")
    pair[1].close()
    with pytest.raises(ConnectionResetError):
        transport.receive([view])
    with pytest.raises(EOFError):
        transport.receive([view], is_start=True)


def test_who_waits_is_woken(pair: tuple[socket.socket, socket.socket]) -> None:
    transport = PlainTransport(pair[0], LinkOptions(stall_s=LIMIT_S))
    failures: list[BaseException] = []

    def receive() -> None:
        try:
            transport.receive([memoryview(bytearray(10))], is_start=True)
        except (OSError, EOFError) as error:
            failures.append(error)

    thread = threading.Thread(target=receive)
    thread.start()
    transport.shut()
    transport.shut()
    thread.join(LIMIT_S)
    assert failures
