"""Who is let in, how many, for how long; and what a client makes of a server that does not let it in."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from shared.deadline import Deadline
from shared.errors import LaneBroken
from shared.lanes.sockets.dial import dial
from shared.lanes.sockets.hello import (
    NEW_LINK,
    TOKEN_BYTES,
    HelloAnswer,
    HelloStatus,
    receive_answer,
    send_hello,
)
from shared.lanes.sockets.link import SocketLink
from shared.lanes.sockets.options import LaneOffer
from shared.lanes.sockets.server import SocketServer
from tests.support.lanes import Census, CountedSlots, introduced, sealed
from tests.support.waiting import LIMIT_S, until

HOST = "127.0.0.1"


@asynccontextmanager
async def serving(
    *,
    max_connections: int = 64,
    max_half_open: int = 16,
    handshake_s: float = 5.0,
    on_link_ended: Callable[[SocketLink], None] | None = None,
) -> AsyncIterator[SocketServer]:
    census = Census()
    server = SocketServer(
        CountedSlots(),
        max_connections=max_connections,
        max_connections_per_link=2,
        max_half_open=max_half_open,
        handshake_s=handshake_s,
        on_link_ended=on_link_ended,
    )
    await server.start(HOST, 0)
    try:
        yield server
    finally:
        await server.close()
        await server.close()
    await census.check()


def say(server: SocketServer, token: bytes, link: int = NEW_LINK) -> tuple[socket.socket, HelloAnswer]:
    """Connect and say hello; to be run in a thread."""
    sock = socket.create_connection((HOST, server.port), timeout=LIMIT_S)
    send_hello(sock, token, link, Deadline.after(LIMIT_S))
    return sock, receive_answer(sock, Deadline.after(LIMIT_S))


async def refusal(server: SocketServer, token: bytes, link: int = NEW_LINK) -> HelloStatus:
    sock, answer = await asyncio.to_thread(say, server, token, link)
    with sock:
        assert await asyncio.to_thread(sock.recv, 1) == b""
    assert answer.link == NEW_LINK
    return answer.status


async def test_who_has_no_token_gets_nothing() -> None:
    async with serving() as server:
        assert await refusal(server, bytes(TOKEN_BYTES)) is HelloStatus.WRONG_TOKEN
        assert await refusal(server, server.offer.token, link=12345) is HelloStatus.UNKNOWN_LINK
        assert server.num_connections == 0
        wrong = server.offer._replace(token=bytes(TOKEN_BYTES))
        with pytest.raises(LaneBroken, match="WRONG_TOKEN"):
            await dial(HOST, wrong, CountedSlots(), None, 1, timeout_s=LIMIT_S)


async def test_two_servers_have_different_tokens() -> None:
    async with serving() as one, serving() as other:
        assert one.offer.token != other.offer.token
        assert len(one.offer.token) == TOKEN_BYTES


async def test_connections_are_bounded_for_a_link_and_for_all() -> None:
    async with serving(max_connections=3) as server:
        one, first = await introduced(server)
        two, same = await introduced(server, first.number)
        assert same is first
        assert await refusal(server, server.offer.token, first.number) is HelloStatus.FULL
        three, second = await introduced(server)
        assert await refusal(server, server.offer.token, second.number) is HelloStatus.FULL
        assert await refusal(server, server.offer.token) is HelloStatus.FULL
        with pytest.raises(LaneBroken, match="FULL"):
            await dial(HOST, server.offer, CountedSlots(), None, 1, timeout_s=LIMIT_S)
        await first.close()
        await until(lambda: server.num_connections == 1)
        link = await dial(HOST, server.offer, CountedSlots(), None, 9, timeout_s=LIMIT_S)
        assert link.num_connections == 2
        await link.close()
        for sock in (one, two, three):
            sock.close()


async def test_a_dial_that_gets_only_some_of_its_connections_keeps_none() -> None:
    async with serving(max_connections=1) as server:
        with pytest.raises(LaneBroken, match="FULL"):
            await dial(HOST, server.offer, CountedSlots(), None, 2, timeout_s=LIMIT_S)
        await until(lambda: server.num_connections == 0)


async def test_the_end_of_a_link_is_told_once() -> None:
    ended: list[int] = []
    async with serving(on_link_ended=lambda link: ended.append(link.number)) as server:
        links = [await dial(HOST, server.offer, CountedSlots(), None, 2, timeout_s=LIMIT_S) for _ in range(2)]
        await links[0].close()
        await until(lambda: ended)
        assert ended == [links[0].number]
        assert server.link(links[0].number) is None
        assert server.link(links[1].number) is not None
    assert ended == [links[0].number, links[1].number]
    await links[1].close()


async def test_who_says_nothing_is_sent_away() -> None:
    async with serving(handshake_s=0.2) as server:
        reader, writer = await asyncio.open_connection(HOST, server.port)
        writer.write(b"Pf")
        assert await asyncio.wait_for(reader.read(), LIMIT_S) == b""
        writer.close()
        await writer.wait_closed()
        await until(lambda: server.num_half_open == 0)


async def test_half_open_connections_are_bounded_and_leave_others_their_links() -> None:
    async with serving(max_half_open=3, handshake_s=60) as server:
        sock, link = await introduced(server)
        silent = [await asyncio.open_connection(HOST, server.port) for _ in range(3)]
        await until(lambda: server.num_half_open == 3)
        reader, writer = await asyncio.open_connection(HOST, server.port)
        assert await asyncio.wait_for(reader.read(), LIMIT_S) == b""
        await link.send(1, [sealed(1, 1000)])
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 1), LIMIT_S)
        silent[0][1].close()
        await until(lambda: server.num_half_open == 2)
        more, _ = await introduced(server)
        await asyncio.wait_for(server.close(), LIMIT_S)  # two are still half open: it does not wait for them
        for each in (sock, more):
            each.close()
        for stream in (writer, *(each for _, each in silent)):
            stream.close()


async def test_thousands_of_connections_leave_nothing() -> None:
    num_rounds, at_once = 40, 50

    async def connect(server: SocketServer, number: int) -> None:
        reader, writer = await asyncio.open_connection(HOST, server.port)
        if number % 3 == 0:
            writer.write(bytes(200))
        elif number % 3 == 1:
            writer.write(struct.pack(f"<4s{TOKEN_BYTES}sQ", b"PfL1", server.offer.token, NEW_LINK))
        if number % 3 != 2 and number % 2:  # the others do not wait for an answer
            with suppress(ConnectionError):
                await asyncio.wait_for(reader.read(1), LIMIT_S)
        writer.transport.abort()

    async with serving(handshake_s=0.3) as server:
        for _ in range(num_rounds):
            await asyncio.gather(*(connect(server, number) for number in range(at_once)))
        await until(lambda: server.num_half_open == server.num_connections == 0)


@asynccontextmanager
async def impostor(
    greet: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[LaneOffer]:
    """Listen as something that is no server of lanes."""
    server = await asyncio.start_server(greet, HOST, 0)
    async with server:
        yield LaneOffer(server.sockets[0].getsockname()[1], bytes(TOKEN_BYTES), 4)


async def test_what_answers_may_be_something_else() -> None:
    async def say_hello(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")

    async with impostor(say_hello) as offer:
        with pytest.raises(LaneBroken):
            await dial(HOST, offer, CountedSlots(), None, 2, timeout_s=LIMIT_S)


async def test_what_listens_may_say_nothing() -> None:
    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    census = Census()
    async with impostor(wait) as offer:
        with pytest.raises(LaneBroken):
            await dial(HOST, offer, CountedSlots(), None, 1, timeout_s=0.2)
        dialing = asyncio.create_task(dial(HOST, offer, CountedSlots(), None, 1, timeout_s=LIMIT_S))
        await asyncio.sleep(0.05)
        dialing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(dialing, LIMIT_S / 2)  # not as long as it would have waited
    await census.check()


@pytest.mark.parametrize("offer", [LaneOffer(1, b"short", 1), LaneOffer(1, bytes(TOKEN_BYTES), 0)])
async def test_an_offer_that_is_none(offer: LaneOffer) -> None:
    with pytest.raises(LaneBroken):
        await dial(HOST, offer, CountedSlots(), None, 1, timeout_s=LIMIT_S)


async def test_nobody_listens() -> None:
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        offer = LaneOffer(sock.getsockname()[1], bytes(TOKEN_BYTES), 4)
        with pytest.raises(LaneBroken):
            await dial(HOST, offer, CountedSlots(), None, 2, timeout_s=LIMIT_S)


async def test_a_server_that_never_started_closes() -> None:
    await SocketServer(CountedSlots()).close()
