"""What a link makes of peers that die, hang, stop half-way or speak nonsense: `LaneBroken`, and nothing is left."""

import asyncio
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from shared.errors import LaneBroken
from shared.kv.frame import Frame
from shared.lanes.sockets.batch import HEADER_BYTES, MAX_ENTRIES, pack_batch
from shared.lanes.sockets.link import SocketLink
from shared.lanes.sockets.options import LinkOptions
from shared.lanes.sockets.receiving import Incoming
from shared.lanes.sockets.server import SocketServer
from tests.support.lanes import Census, CountedSlots, introduced, plain, sealed
from tests.support.waiting import LIMIT_S, until

KIB, MIB = 1 << 10, 1 << 20


@asynccontextmanager
async def serving(options: LinkOptions | None = None) -> AsyncIterator[tuple[SocketServer, CountedSlots]]:
    """Run a server of which nothing may be left afterwards."""
    slots, census = CountedSlots(), Census()
    server = SocketServer(slots, options=options or LinkOptions(verify=True))
    await server.start("127.0.0.1", 0)
    try:
        yield server, slots
    finally:
        await server.close()
    await census.check()
    assert slots.num_taken == 0


async def broken(incoming: Incoming, slots: CountedSlots) -> list[Frame]:
    """Return what a stream still gives before it fails, as it must."""
    frames: list[Frame] = []
    try:
        async with asyncio.timeout(LIMIT_S):
            async for received in incoming:
                frames += plain(received.frames)
                slots.free_all(received.frames)
    except LaneBroken:
        return frames
    raise AssertionError("the stream ended without an error")


def wire(stream: int, frames: Sequence[Frame]) -> bytes:
    return b"".join(pack_batch(stream, frames))


GOOD = wire(1, [sealed(1, 3000), sealed(2, 3000)])


def changed(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


@pytest.mark.parametrize(
    "cut",
    [1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 70, HEADER_BYTES + 128, HEADER_BYTES + 129, len(GOOD) - 1],
)
async def test_a_connection_that_is_cut_within_a_batch(cut: int) -> None:
    async with serving() as (server, slots):
        sock, link = await introduced(server)
        with link.incoming(1) as incoming:
            sock.sendall(GOOD + GOOD[:cut])
            sock.close()
            assert await broken(incoming, slots) == [sealed(1, 3000), sealed(2, 3000)]
        await until(lambda: server.link(link.number) is None)


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n" + bytes(HEADER_BYTES), id="another protocol"),
        pytest.param(os.urandom(4096), id="noise"),
        pytest.param(changed(GOOD, 4, struct.pack("<I", 0)), id="no entries"),
        pytest.param(changed(GOOD, 4, struct.pack("<I", MAX_ENTRIES + 1)), id="too many entries"),
        pytest.param(changed(GOOD, 4, struct.pack("<I", 0xFFFFFFFF)), id="very many entries"),
        pytest.param(changed(GOOD, 8, struct.pack("<Q", 2)), id="another stream"),
        pytest.param(changed(GOOD, 16, struct.pack("<Q", 0)), id="no bytes"),
        pytest.param(changed(GOOD, 16, struct.pack("<Q", 1 << 62)), id="very many bytes"),
        pytest.param(changed(GOOD, 16, struct.pack("<Q", 6001)), id="one byte more than announced"),
        pytest.param(changed(GOOD, 24, bytes(8)), id="another digest"),
        pytest.param(changed(GOOD, HEADER_BYTES, b"\xff"), id="another key"),
        pytest.param(changed(GOOD, HEADER_BYTES + 48, struct.pack("<I", 1 << 31)), id="a huge payload"),
    ],
)
async def test_nonsense_ends_the_link(garbage: bytes) -> None:
    async with serving() as (server, slots):
        sock, link = await introduced(server)
        with sock, link.incoming(1) as incoming:
            sock.sendall(garbage)
            assert await broken(incoming, slots) == []
            assert await ends(sock)


async def ends(sock: socket.socket) -> bool:
    """Return whether the other end closes a connection."""
    try:
        async with asyncio.timeout(LIMIT_S):
            return not await asyncio.get_running_loop().sock_recv(sock, 1)
    except ConnectionResetError:  # it had not read all
        return True


async def test_a_flipped_bit_of_a_payload_costs_its_entry_only() -> None:
    async with serving() as (server, slots):
        sock, link = await introduced(server)
        with sock, link.incoming(1) as incoming:
            flipped = GOOD[-1] ^ 1
            sock.sendall(GOOD[:-1] + bytes([flipped]) + GOOD)
            async with asyncio.timeout(LIMIT_S):
                first, second = [await anext(incoming) for _ in range(2)]
            assert plain(first.frames) == [sealed(1, 3000)]
            assert first.corrupt == [(sealed(2, 1).key, 1)]
            assert len(second.frames) == 2
            slots.free_all(first.frames + second.frames)


async def test_a_peer_that_stops_within_a_batch() -> None:
    async with serving(LinkOptions(stall_s=0.2)) as (server, slots):
        sock, link = await introduced(server)
        with sock, link.incoming(1) as incoming:
            sock.sendall(GOOD)
            async with asyncio.timeout(LIMIT_S):
                slots.free_all((await anext(incoming)).frames)
            sock.sendall(GOOD[:-1])
            assert await broken(incoming, slots) == []


async def test_a_peer_that_is_quiet_between_batches_is_none_that_stops() -> None:
    async with serving(LinkOptions(stall_s=0.05)) as (server, slots):
        sock, link = await introduced(server)
        with sock, link.incoming(1) as incoming:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):  # several times as long as a batch may stand still
                    await anext(incoming)
            sock.sendall(GOOD)
            async with asyncio.timeout(LIMIT_S):
                slots.free_all((await anext(incoming)).frames)


async def test_a_peer_that_takes_nothing() -> None:
    async with serving(LinkOptions(stall_s=0.2)) as (server, _):
        sock, link = await introduced(server)
        with sock:
            sending = [asyncio.create_task(link.send(1, [sealed(number, 64 * MIB)])) for number in range(1, 4)]
            results = await asyncio.wait_for(asyncio.gather(*sending, return_exceptions=True), LIMIT_S)
            assert [type(result) for result in results] == [LaneBroken] * 3
            with pytest.raises(LaneBroken):
                await link.send(1, [sealed(1, 10)])


async def test_one_connection_that_breaks_breaks_its_link_and_no_other() -> None:
    async with serving() as (server, slots):
        first, link = await introduced(server)
        second, same = await introduced(server, link.number)
        third, other = await introduced(server)
        assert same is link
        with first, third, link.incoming(1) as incoming, other.incoming(1) as unharmed:
            second.close()
            assert await broken(incoming, slots) == []
            assert await ends(first)
            third.sendall(GOOD)
            async with asyncio.timeout(LIMIT_S):
                slots.free_all((await anext(unharmed)).frames)
            assert server.link(other.number) is other


async def test_cancelled_while_sending_all_of_the_batch_is_sent() -> None:
    async with serving() as (server, _):
        sock, link = await introduced(server)
        with sock:
            frame = sealed(1, 32 * MIB)
            sending = asyncio.create_task(link.send(1, [frame]))
            loop = asyncio.get_running_loop()
            data = await asyncio.wait_for(loop.sock_recv(sock, 1 * MIB), LIMIT_S)
            sending.cancel()
            await asyncio.wait([sending])
            assert sending.cancelled()
            expected = wire(1, [frame])
            while len(data) < len(expected):
                part = await asyncio.wait_for(loop.sock_recv(sock, 4 * MIB), LIMIT_S)
                assert part
                data += part
            assert data == expected


@asynccontextmanager
async def peer_process(server: SocketServer, num_connections: int) -> AsyncIterator[tuple[SocketLink, int]]:
    """Run another process that sends on stream 1 and takes on stream 2; yields its link and process id."""
    offer = server.offer
    arguments = [str(offer.port), offer.token.hex(), str(num_connections), str(512 * KIB)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.lane_peer", *arguments, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), LIMIT_S)
        link = server.link(json.loads(line))
        assert link is not None
        yield link, process.pid
    finally:
        if process.returncode is None:
            process.kill()
        await asyncio.wait_for(process.wait(), LIMIT_S)
        process._transport.close()  # type: ignore[attr-defined]  # its pipes go now, not some time later


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_peer_that_dies_or_hangs_while_it_sends_and_receives(signal_number: signal.Signals) -> None:
    options = LinkOptions(verify=True, stall_s=0.5, max_unread_bytes=8 * MIB)
    async with serving(options) as (server, slots), peer_process(server, 2) as (link, pid):
        with link.incoming(1) as incoming:
            sending = asyncio.create_task(send_for_ever(link))
            async with asyncio.timeout(LIMIT_S):
                for _ in range(5):
                    slots.free_all((await anext(incoming)).frames)
            await until(lambda: link.num_bytes_sent > 8 * MIB)
            os.kill(pid, signal_number)
            for frame in await broken(incoming, slots):
                assert frame == sealed(int.from_bytes(frame.key, "big"), 512 * KIB)
            with pytest.raises(LaneBroken):
                await asyncio.wait_for(sending, LIMIT_S)


async def send_for_ever(link: SocketLink) -> None:
    frames = [sealed(number, 512 * KIB) for number in range(1, 5)]
    while True:
        await link.send(2, frames)


async def test_the_server_may_close_with_all_in_flight() -> None:
    options = LinkOptions(verify=True, max_unread_bytes=2 * MIB)
    async with serving(options) as (server, slots), peer_process(server, 2) as (link, _):
        with link.incoming(1) as incoming:
            sending = asyncio.create_task(send_for_ever(link))
            await until(lambda: link.unread_bytes and link.num_bytes_sent > MIB)
            await asyncio.wait_for(server.close(), LIMIT_S)
            with pytest.raises(LaneBroken):
                await sending
            await broken(incoming, slots)
        assert link.num_connections == 0
