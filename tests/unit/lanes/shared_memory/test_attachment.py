"""The process's side: what it believes of a pool, and that nothing a pool says can hurt it."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from fcntl import F_ADD_SEALS, F_SEAL_SHRINK, fcntl
from pathlib import Path

import pytest

from shared.errors import CorruptFrame, LaneBroken
from shared.lanes.shared_memory import attachment as attachment_module
from shared.lanes.shared_memory.attachment import Attachment
from shared.lanes.shared_memory.door import MemoryDoor
from shared.lanes.shared_memory.folder import listen, open_folder
from shared.lanes.shared_memory.messages import HELLO, MAGIC, NUMBER, WELCOME
from shared.lanes.slabs import SLAB_BYTES
from shared.lanes.slots import SlotMemory
from shared.proto import prfaas_pb2 as pb
from tests.support.shared_memory import descriptors
from tests.support.waiting import LIMIT_S, until

NUM_BYTES = 1 << 20
TOKEN = bytes(32)
Answer = Callable[[socket.socket], None]


def sealed(num_bytes: int = NUM_BYTES, seals: int = F_SEAL_SHRINK) -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, num_bytes)
    fcntl(fd, F_ADD_SEALS, seals)
    return fd


def welcoming(fd: int, *, magic: bytes = MAGIC, size: int = NUM_BYTES, touched: int = 4096, cut: int = 32) -> Answer:
    def answer(connection: socket.socket) -> None:
        socket.send_fds(connection, [WELCOME.pack(magic, 5, size, touched)[:cut]], [fd])
        os.close(fd)

    return answer


@asynccontextmanager
async def pool(folder: Path, answer: Answer) -> AsyncIterator[tuple[pb.SharedMemoryOffer, list[socket.socket]]]:
    """A pool that answers the first hello as it is told, and then says nothing."""
    open_folder(folder)
    listener, path = listen(folder, 8)
    loop = asyncio.get_running_loop()
    connections: list[socket.socket] = []

    async def serve() -> None:
        connection, _ = await loop.sock_accept(listener)
        connections.append(connection)
        assert len(await loop.sock_recv(connection, 100)) == HELLO.size
        answer(connection)

    serving = asyncio.create_task(serve())
    try:
        yield pb.SharedMemoryOffer(path=str(path), token=TOKEN), connections
        await asyncio.wait_for(serving, LIMIT_S)
    finally:
        serving.cancel()
        for connection in (listener, *connections):
            connection.close()


def regular_file() -> int:
    fd = os.memfd_create("test")  # the seal that forbids seals
    os.ftruncate(fd, NUM_BYTES)
    return fd


def on_disk(folder: Path) -> int:
    fd = os.open(folder.parent / "file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, NUM_BYTES)
    return fd


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(lambda: welcoming(sealed(), magic=b"prfaasM9"), "not one", id="another version"),
        pytest.param(lambda: welcoming(sealed(), size=2 * NUM_BYTES), "bytes, not", id="less than it says"),
        pytest.param(lambda: welcoming(sealed(), size=1 << 50), "not one", id="more than there can be"),
        pytest.param(lambda: welcoming(sealed(), touched=2 * NUM_BYTES), "not one", id="touched beyond its end"),
        pytest.param(lambda: welcoming(sealed(seals=0)), "shrink", id="not sealed"),
        pytest.param(lambda: welcoming(regular_file()), "shrink", id="never sealed"),
        pytest.param(lambda: welcoming(os.open("/dev/zero", os.O_RDWR)), "bytes, not", id="a device"),
        pytest.param(lambda: welcoming(sealed(), cut=31), "refused", id="truncated"),
        pytest.param(lambda: lambda c: c.send(WELCOME.pack(MAGIC, 5, 9, 9)) and None, "0 descriptors", id="no memory"),
        pytest.param(lambda: lambda _: None, "refused", id="closes"),
    ],
)
async def test_a_pool_that_lies_gets_no_reader(folder: Path, make: Callable[[], Answer], reason: str) -> None:
    before = descriptors()
    answer = make()

    def answer_and_end(connection: socket.socket) -> None:
        answer(connection)
        connection.shutdown(socket.SHUT_WR)

    async with pool(folder, answer_and_end) as (offer, _):
        with pytest.raises(LaneBroken, match=reason):
            await Attachment.attach(offer, LIMIT_S)
    assert descriptors() == before


async def test_a_file_on_disk_is_no_memory(folder: Path) -> None:
    open_folder(folder)
    async with pool(folder, welcoming(on_disk(folder))) as (offer, _):
        with pytest.raises(LaneBroken, match="cannot be mapped"):
            await Attachment.attach(offer, LIMIT_S)


async def test_a_pool_that_says_nothing_is_waited_for_no_longer_than_asked(folder: Path) -> None:
    before = descriptors()
    async with pool(folder, lambda _: None) as (offer, _):
        with pytest.raises(LaneBroken, match="does not answer"):
            await Attachment.attach(offer, 0.05)
    assert descriptors() == before


async def test_a_pool_whose_queue_is_full_is_asked_again(folder: Path) -> None:
    open_folder(folder)
    listener, path = listen(folder, 0)
    others = []
    for _ in range(8):
        other = socket.socket(socket.AF_UNIX)
        others.append(other)
        other.setblocking(False)
        try:
            other.connect(str(path))
        except BlockingIOError:
            break
    with pytest.raises(LaneBroken, match="does not answer"):
        await Attachment.attach(pb.SharedMemoryOffer(path=str(path), token=TOKEN), 0.05)
    for each in (listener, *others):
        each.close()


@pytest.mark.parametrize("path", ["/nowhere/pool.sock", "", "x" * 200, "a\0b"])
async def test_a_pool_of_another_host_is_not_found(path: str) -> None:
    with pytest.raises(LaneBroken):
        await Attachment.attach(pb.SharedMemoryOffer(path=path, token=TOKEN), LIMIT_S)


async def test_an_offer_without_a_token_is_none(door: MemoryDoor) -> None:
    with pytest.raises(LaneBroken, match="no token"):
        await Attachment.attach(pb.SharedMemoryOffer(path=door.offer.path), LIMIT_S)


async def test_memory_is_shared_on_linux_only(door: MemoryDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(LaneBroken, match="Linux only"):
        await Attachment.attach(door.offer, LIMIT_S)


async def test_a_wrong_token_is_refused(door: MemoryDoor) -> None:
    with pytest.raises(LaneBroken, match="refused"):
        await Attachment.attach(pb.SharedMemoryOffer(path=door.offer.path, token=TOKEN), LIMIT_S)


@pytest.mark.parametrize(
    ("place", "num_bytes"),
    [(0, 1), (-1, 1), (4096, 0), (4096, -5), (1 << 62, 1), (4096, 1 << 62), (16 << 23, 8192)],
)
async def test_places_that_are_none_are_corrupt(door: MemoryDoor, place: int, num_bytes: int) -> None:
    attachment = await Attachment.attach(door.offer, LIMIT_S)
    with pytest.raises(CorruptFrame, match="not in a memory"):
        attachment.view(place, num_bytes)
    assert len(attachment.slot(4096, 16 << 23)) == attachment.size_bytes - 4096
    await attachment.close()


async def test_a_pool_s_words_come_in_pieces_and_are_believed_up_to_a_point(folder: Path) -> None:
    async with pool(folder, welcoming(sealed())) as (offer, connections):
        attachment = await Attachment.attach(offer, LIMIT_S)
        connections[0].send(NUMBER.pack(8192)[:3])
        connections[0].send(NUMBER.pack(8192)[3:] + NUMBER.pack(4096))
        await until(lambda: attachment.touched_bytes == 8192)
        connections[0].send(NUMBER.pack(1 << 60))
        await until(lambda: attachment.touched_bytes == NUM_BYTES)
        await attachment.close()


async def test_streams_are_let_go_in_order_when_the_pool_reads_late_and_from_any_thread(folder: Path) -> None:
    async with pool(folder, welcoming(sealed())) as (offer, connections):
        attachment = await Attachment.attach(offer, LIMIT_S)

        def let_go() -> None:
            for stream in range(50_000):
                attachment.let_go(stream)

        await asyncio.to_thread(let_go)
        assert attachment._unsent, "the socket takes everything"
        loop = asyncio.get_running_loop()
        read = bytearray()
        async with asyncio.timeout(LIMIT_S):
            while len(read) < 50_000 * NUMBER.size:
                read += await loop.sock_recv(connections[0], 1 << 20)
        assert [number for (number,) in NUMBER.iter_unpack(read)] == list(range(50_000))
        attachment.let_go(7)
        async with asyncio.timeout(LIMIT_S):
            assert await loop.sock_recv(connections[0], 100) == NUMBER.pack(7)
        assert not attachment.broken
        await attachment.close()


async def test_a_pool_that_never_reads_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachment_module, "MAX_UNSENT_BYTES", 1000)
    async with pool(folder, welcoming(sealed())) as (offer, connections):
        attachment = await Attachment.attach(offer, LIMIT_S)
        for stream in range(200_000):
            attachment.let_go(stream)
        await asyncio.wait_for(attachment.ended.wait(), LIMIT_S)
        assert len(attachment._unsent) <= 1000 + NUMBER.size
        await attachment.close()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(LIMIT_S):
            while await loop.sock_recv(connections[0], 1 << 20):
                pass  # until the connection has ended, which tells the pool all


async def test_views_outlive_the_pool(folder: Path) -> None:
    async with pool(folder, welcoming(sealed())) as (offer, connections):
        attachment = await Attachment.attach(offer, LIMIT_S)
        attachment.slot(4096, 3)[:] = b"abc"
        view = attachment.view(4096, 3)
        connections[0].close()
        await asyncio.wait_for(attachment.ended.wait(), LIMIT_S)
        assert attachment.broken
        attachment.let_go(1)
        attachment.let_go(2)
        assert bytes(view) == b"abc"
        await attachment.close()


async def test_nothing_of_an_attachment_is_left(door: MemoryDoor, memory: SlotMemory) -> None:
    def maps() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:prfaas-payloads")

    num_descriptors, num_maps = descriptors(), maps()
    for _ in range(3):
        attachment = await Attachment.attach(door.offer, LIMIT_S)
        attachment.let_go(attachment.new_stream())
        view = attachment.view(4096, 10)
        await attachment.close()
        del attachment
        assert maps() == num_maps + 1
        del view
        assert maps() == num_maps
    await until(lambda: door.num_clients == 0)
    assert (descriptors(), maps()) == (num_descriptors, num_maps)


async def test_pages_are_mapped_as_the_pool_touches_them(door: MemoryDoor, memory: SlotMemory) -> None:
    attachment = await Attachment.attach(door.offer, LIMIT_S)
    job = asyncio.create_task(attachment.keep_mapped())
    memory.touch_ahead(3 * SLAB_BYTES)
    await until(lambda: resident(attachment.address) >= memory.touched_bytes)
    await attachment.close()
    async with asyncio.timeout(LIMIT_S):
        await job


def resident(address: int) -> int:
    """Return how many bytes of the mapping at this address are mapped into this process."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.startswith(f"{address:x}-"):
            break
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Rss:"))
