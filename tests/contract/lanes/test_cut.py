"""The lane's connection alone ends, falls silent or is abused while the calls live on: the answer stays the same."""

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from services.cachepool.serving.offers import OfferedLanes
from shared.errors import PrfaasError
from shared.kv.frame import Frame
from shared.lanes.settings import LaneName
from shared.lanes.sockets.options import LinkOptions
from shared.pool.client import PoolClient
from shared.pool.lanes import chosen, linked
from shared.pool.lanes.lane import Lane
from shared.proto import prfaas_pb2 as pb
from shared.rpc.client import Channels
from tests.support.lanes import introduced
from tests.support.large import LARGE, LONG, Reading, large_frames, placed_or_sent, write_all
from tests.support.ledger import Ledger, cut_lanes, ends_of
from tests.support.pools import Running, soon
from tests.support.proxy import Proxy, proxied
from tests.support.samples import wanting
from tests.support.waiting import LIMIT_S, until

BESIDE = pytest.mark.parametrize("lane", ["shared_memory", "socket"], indirect=True)
"""The lanes that have connections of their own."""
SOCKET = pytest.mark.parametrize("lane", ["socket"], indirect=True)
HALF = len(LONG) // 2


async def lane_of(running: Running) -> Lane:
    assert running.client._lanes is not None
    return await running.client._lanes.to(running.address)


@BESIDE
async def test_the_rest_of_a_fetch_comes_in_messages(
    west: Running, lane: LaneName, channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_message = PoolClient(channels, west.address)
    await write_all(by_message, LONG[:HALF])
    ledger = await Ledger.of(west)
    is_cut = False

    async def then(frames: list[Frame]) -> None:
        nonlocal is_cut
        if not is_cut:
            is_cut = True
            cut_lanes(ends_of(west))
            await write_all(by_message, LONG[HALF:])

    reading = await Reading(west.client, LONG, wait_s=LIMIT_S).run(then)
    assert reading.has_all
    assert west.count("lane_sent_bytes_total", lane=lane) > 0
    assert west.count("lane_sent_bytes_total", lane="grpc") > 0
    assert (await lane_of(west)).name == "grpc"
    monkeypatch.setattr(chosen, "RETRY_S", 0.0)
    way = west.client._lanes._ways[west.address]  # type: ignore[union-attr]
    way.retry_at = 0.0
    assert (await lane_of(west)).name == lane
    assert (await Reading(west.client, LONG).run()).has_all
    await ledger.balanced()


@BESIDE
async def test_a_publication_fails_or_goes_on_with_the_room_it_has(
    west: Running, lane: LaneName, channels: Channels
) -> None:
    """Either way what it did not bring can be written by another, and readers get all."""
    ledger, its_lane = await Ledger.of(west), await lane_of(west)
    reading = asyncio.create_task(Reading(PoolClient(channels, west.address), LONG, wait_s=LIMIT_S).run())
    has_failed = False
    try:
        async with west.client.publish(soon()) as publication:
            await publication.open(LARGE, wanting(LONG, LARGE.all_layers))
            await placed_or_sent(publication, large_frames(LONG[:HALF], 1))
            await until(lambda: west.count("stored_entries") == HALF)
            cut_lanes(ends_of(west))
            await until(lambda: its_lane.is_broken)
            await placed_or_sent(publication, large_frames(LONG[HALF:], 1))
    except PrfaasError:
        has_failed = True
    assert has_failed == (lane == "socket")
    await until(lambda: west.count("writers_open") == 0)
    async with west.client.publish(soon()) as publication:
        grant = await publication.open(LARGE, wanting(LONG, LARGE.all_layers))
        assert grant.granted == ([0b10] * HALF + [0b11] * HALF if has_failed else [0b10] * 2 * HALF)
        masks = dict(zip(LONG, grant.granted, strict=True))
        await placed_or_sent(publication, [sent for sent in large_frames(LONG) if masks[sent.key] >> sent.layer & 1])
    assert (await reading).has_all
    await ledger.balanced()


@asynccontextmanager
async def through(west: Running, monkeypatch: pytest.MonkeyPatch, limits: dict[int, int]) -> AsyncIterator[Proxy]:
    """Lead new connections of the socket lane through a proxy."""
    server = ends_of(west).server
    assert server is not None
    offered = OfferedLanes.reply

    async with proxied(server.port, limits) as proxy:

        def reply(self: OfferedLanes) -> pb.LanesReply:
            answer = offered(self)
            answer.socket.port = int(proxy.address.rpartition(":")[2])
            return answer

        monkeypatch.setattr(OfferedLanes, "reply", reply)
        assert west.client._lanes is not None
        lane = west.client._lanes._ways.pop(west.address).lane
        await lane.close()
        yield proxy


@SOCKET
@pytest.mark.parametrize("end", ["reset", "silence"])
async def test_a_connection_that_dies_within_a_batch(west: Running, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reset, or half-open: nothing comes any more, and nobody says so."""
    await write_all(west.client, LONG)
    await until(lambda: west.idle)
    monkeypatch.setattr(chosen, "LinkOptions", partial(LinkOptions, stall_s=0.5))
    monkeypatch.setattr(linked, "LAST_PATIENCE_S", 1.0)
    monkeypatch.setattr(west.client._lanes, "_num_connections", 1)  # or the other one may carry it all
    async with through(west, monkeypatch, {0: 300_000}) as proxy:
        ledger = await Ledger.of(west)
        reading = asyncio.create_task(Reading(west.client, LONG).run())
        if end == "reset":
            (await proxy.silent(0)).reset()
        assert (await reading).has_all
        assert west.count("lane_sent_bytes_total", lane="grpc") > 0
        for connection in proxy.connections:
            connection.reset()
        await ledger.balanced()


GARBAGE = [b"", b"\x00", b"GET / HTTP/1.1\r\n\r\n", secrets.token_bytes(40), b"\xff" * 4096, b"Pf" + bytes(100)]


@BESIDE
async def test_nonsense_at_the_lane_s_door_changes_nothing(west: Running, lane: LaneName) -> None:
    await write_all(west.client, LONG)
    ledger = await Ledger.of(west)

    def talk() -> None:
        for words in GARBAGE:
            with _connected(west, lane) as sock:
                try:
                    sock.sendall(words)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(4096):
                        pass
                except OSError:
                    pass  # sent away already

    reading = asyncio.create_task(Reading(west.client, LONG).run())
    await asyncio.to_thread(talk)
    assert (await reading).has_all
    assert (await lane_of(west)).name == lane
    await ledger.balanced()


@SOCKET
async def test_nonsense_of_who_has_the_token_ends_its_link_and_no_other(west: Running) -> None:
    await write_all(west.client, LONG)
    server = ends_of(west).server
    assert server is not None
    ledger = await Ledger.of(west)
    sock, link = await introduced(server)
    await asyncio.get_running_loop().sock_sendall(sock, secrets.token_bytes(4096))
    await until(lambda: link.broken is not None)
    sock.close()
    assert (await Reading(west.client, LONG).run()).has_all
    assert (await lane_of(west)).name == "socket"
    await ledger.balanced()


@BESIDE
async def test_ten_thousand_connects_leave_nothing_and_keep_nobody_out(west: Running, lane: LaneName) -> None:
    await write_all(west.client, LONG)
    ledger = await Ledger.of(west)
    most = 0

    def connect() -> None:
        nonlocal most
        for _ in range(500):
            try:
                _connected(west, lane).close()
            except OSError:
                pass  # the queue of the listener is full
            most = max(most, _num_greeted(west))

    for _ in range(20):
        await asyncio.to_thread(connect)
        assert (await Reading(west.client, LONG[:2]).run()).has_all
    assert 0 < most <= 64
    assert (await lane_of(west)).name == lane
    await ledger.balanced()
    assert west.client._lanes is not None
    await west.client._lanes._ways.pop(west.address).lane.close()
    assert (await Reading(west.client, LONG).run()).has_all
    assert (await lane_of(west)).name == lane


def _connected(west: Running, lane: LaneName) -> socket.socket:
    ends = ends_of(west)
    if lane == "socket":
        assert ends.server is not None
        return socket.create_connection(("127.0.0.1", ends.server.port), timeout=LIMIT_S)
    assert ends.door is not None
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(LIMIT_S)
    try:
        sock.connect(ends.door.offer.path)
    except BaseException:
        sock.close()
        raise
    return sock


def _num_greeted(west: Running) -> int:
    ends = ends_of(west)
    of_server = ends.server.num_half_open if ends.server is not None else 0
    return of_server + (len(ends.door._greetings) if ends.door is not None else 0)
