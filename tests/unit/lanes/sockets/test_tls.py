"""Links over TLS: the same promises, and who has no certificate gets nothing."""

import asyncio
import ssl

import pytest
import trustme

from shared.errors import LaneBroken
from shared.lanes.sockets.dial import dial
from shared.lanes.sockets.options import LinkOptions
from shared.lanes.sockets.server import SocketServer
from tests.support.lanes import Census, CountedSlots, linked, plain, sealed
from tests.support.waiting import LIMIT_S, until

MIB = 1 << 20


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def contexts(authority: trustme.CA) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of a server and of a client; each asks for the other's certificate."""
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    for context, name in ((server, "localhost"), (client, "an-engine")):
        authority.issue_cert(name).configure_cert(context)
        authority.configure_trust(context)
    server.verify_mode = ssl.CERT_REQUIRED
    return server, client


async def test_both_ways_at_once(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    frames = [sealed(number, 100_000 + number) for number in range(1, 100)]
    async with linked(2, tls=contexts) as ends, asyncio.timeout(LIMIT_S):
        with ends.far.incoming(1) as up, ends.near.incoming(1) as down:
            sending = [
                asyncio.create_task(link.send(1, frames[at : at + 11]))
                for link in (ends.near, ends.far)
                for at in range(0, 99, 11)
            ]
            for incoming, slots in ((up, ends.far_slots), (down, ends.near_slots)):
                received = [frame for _ in range(9) for frame in (await anext(incoming)).frames]
                assert sorted(plain(received)) == frames
                slots.free_all(received)
            await asyncio.gather(*sending)


async def test_a_stopped_consumer_a_cancelled_sender_and_the_end(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async with linked(tls=contexts, far=LinkOptions(max_unread_bytes=MIB)) as ends:
        with ends.far.incoming(1) as incoming, ends.near.incoming(2) as other:
            sending = [asyncio.create_task(ends.near.send(1, [sealed(number, 16 * MIB)])) for number in range(1, 5)]
            await until(lambda: ends.far.unread_bytes and ends.near.num_waiting == 2)
            await ends.far.send(2, [sealed(9, MIB)])  # the other way is free
            async with asyncio.timeout(LIMIT_S):
                ends.near_slots.free_all((await anext(other)).frames)
                sending[2].cancel()
                received = [frame for _ in range(2) for frame in (await anext(incoming)).frames]
            assert plain(received) == [sealed(1, 16 * MIB), sealed(2, 16 * MIB)]
            ends.far_slots.free_all(received)
            await until(lambda: ends.far.unread_bytes)
            await ends.far.close()
            with pytest.raises(LaneBroken):
                async with asyncio.timeout(LIMIT_S):
                    await anext(other)


async def test_who_does_not_speak_tls_or_is_not_trusted(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    census = Census()
    server = SocketServer(CountedSlots(), contexts[0], handshake_s=1)
    await server.start("127.0.0.1", 0)
    stranger = ssl.create_default_context()
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    for host, context in (
        ("localhost", None),
        ("localhost", stranger),  # shows no certificate
        ("127.0.0.1", contexts[1]),  # a name that the server's certificate is not for
        ("localhost", ssl.create_default_context()),  # does not know the authority
    ):
        with pytest.raises(LaneBroken):
            await dial(host, server.offer, CountedSlots(), context, 1, timeout_s=LIMIT_S)
    await until(lambda: server.num_half_open == server.num_connections == 0)
    await server.close()
    await census.check()


async def test_a_peer_that_stops_within_a_batch(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """The sender takes a view whose end is not there yet: the client's thread stands still, then its link breaks."""
    quick = LinkOptions(stall_s=0.2, max_unread_bytes=MIB)
    async with linked(tls=contexts, far=quick, near=quick) as ends:
        with ends.far.incoming(1) as incoming:
            sending = [asyncio.create_task(ends.near.send(1, [sealed(number, 32 * MIB)])) for number in range(1, 4)]
            results = await asyncio.wait_for(asyncio.gather(*sending, return_exceptions=True), LIMIT_S)
            assert isinstance(results[-1], LaneBroken)
            async with asyncio.timeout(LIMIT_S):
                ends.far_slots.free_all((await anext(incoming)).frames)
                with pytest.raises(LaneBroken):
                    await anext(incoming)
