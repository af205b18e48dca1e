"""The pool's side: who is let in, what is held for whom, and until when."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from shared.errors import LaneBroken, SettingsError
from shared.lanes.shared_memory.attachment import Attachment
from shared.lanes.shared_memory.client import AttachedClient
from shared.lanes.shared_memory.door import MemoryDoor
from shared.lanes.shared_memory.messages import HELLO, MAGIC, NUMBER, WELCOME
from shared.lanes.slabs import SLAB_BYTES
from shared.lanes.slots import SlotMemory
from tests.support.shared_memory import descriptors
from tests.support.waiting import LIMIT_S, until


def connect(door: MemoryDoor) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(door.offer.path)
    connection.setblocking(False)
    return connection


async def ends(connection: socket.socket) -> bool:
    """Whether the pool closes a connection without a word."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(LIMIT_S):
        try:
            return await loop.sock_recv(connection, 1) == b""
        except ConnectionResetError:
            return True


async def attached(door: MemoryDoor) -> tuple[Attachment, AttachedClient]:
    attachment = await Attachment.attach(door.offer, LIMIT_S)
    client = door.attachment(attachment.number)
    assert client is not None
    return attachment, client


async def test_what_the_pool_keeps_another_mapping_reads(door: MemoryDoor, memory: SlotMemory) -> None:
    attachment, client = await attached(door)
    kept = memory.keep(b"payload" * 100)
    stream = attachment.new_stream()
    client.hold(stream, [kept])
    view = attachment.view(memory.place(kept), 700)
    assert view == kept
    assert view.readonly
    slot = memory.take(1000)
    attachment.slot(memory.place(slot), 1000)[:3] = b"abc"
    assert bytes(slot[:3]) == b"abc"
    attachment.let_go(stream)
    await until(lambda: client.num_held == 0)
    assert (client.num_streams, door.num_held, door.num_clients) == (0, 0, 1)
    await attachment.close()


async def test_a_connection_ends_with_the_last_view(door: MemoryDoor, memory: SlotMemory) -> None:
    attachment, client = await attached(door)
    kept = memory.keep(b"x" * 1000)
    client.hold(attachment.new_stream(), [kept])
    view = attachment.view(memory.place(kept), 1000)
    await attachment.close()
    await attachment.close()
    with pytest.raises(LaneBroken):
        attachment.view(memory.place(kept), 1000)
    second, _ = await attached(door)  # the pool has seen by now all that the first has sent
    assert client.num_held == 1
    assert view == kept
    del view
    await until(client.closed.is_set)
    assert client.num_held == 0
    assert door.attachment(attachment.number) is None
    with pytest.raises(LaneBroken, match="not attached"):
        client.hold(7, [kept])
    await second.close()


async def test_a_freed_slot_is_used_again_once_its_stream_is_let_go(door: MemoryDoor) -> None:
    memory = SlotMemory(SLAB_BYTES, shared=False)
    attachment, client = await attached(door)
    kept = memory.keep(bytes(SLAB_BYTES))
    stream = attachment.new_stream()
    client.hold(stream, [kept])
    memory.free(kept)
    del kept
    with pytest.raises(Exception, match="in use or still read"):
        memory.take(SLAB_BYTES)
    attachment.let_go(stream)
    await until(lambda: client.num_held == 0)
    assert memory.take(SLAB_BYTES)
    await attachment.close()


async def test_a_stream_that_was_let_go_is_never_held_again(door: MemoryDoor, memory: SlotMemory) -> None:
    attachment, client = await attached(door)
    streams = [attachment.new_stream() for _ in range(20)]
    assert len(set(streams)) == 20
    for stream in (streams[3], *streams[:3], *streams[4:]):  # the first message of a stream may come after its end
        attachment.let_go(stream)
    kept = memory.keep(b"x")
    await until(lambda: streams[-1] in client._gone)
    for stream in streams:
        with pytest.raises(LaneBroken, match="let go"):
            client.hold(stream, [kept])
    client.hold(attachment.new_stream(), [kept])
    assert not attachment.broken
    await attachment.close()


async def test_who_holds_too_much_is_cut_but_keeps_what_it_has_until_it_has_gone(
    door: MemoryDoor, memory: SlotMemory
) -> None:
    attachment, client = await attached(door)
    kept = memory.keep(b"x" * 1000)
    view = attachment.view(memory.place(kept), 1000)
    for _ in range(4):
        client.hold(attachment.new_stream(), [kept])
    with pytest.raises(LaneBroken, match="lets go of none"):
        client.hold(attachment.new_stream(), [kept])
    with pytest.raises(LaneBroken, match="not attached"):
        client.hold(1, [kept])
    await asyncio.wait_for(attachment.ended.wait(), LIMIT_S)
    assert attachment.broken
    attachment.let_go(2)  # it still may say so
    await until(lambda: client.num_streams == 3)
    assert not client.closed.is_set()
    del view
    await attachment.close()
    await until(client.closed.is_set)
    assert client.num_held == 0


async def test_who_lets_go_of_what_nobody_has_is_cut(door: MemoryDoor) -> None:
    attachment, _ = await attached(door)
    for stream in range(1, 100, 2):
        attachment.let_go(stream)
    await asyncio.wait_for(attachment.ended.wait(), LIMIT_S)
    await attachment.close()


async def test_a_process_learns_how_far_memory_is_touched(door: MemoryDoor, memory: SlotMemory) -> None:
    attachment, _ = await attached(door)
    assert attachment.touched_bytes == memory.touched_bytes
    told: list[int] = []
    attachment.watch(told.append)
    await asyncio.to_thread(memory.touch_ahead, 3 * SLAB_BYTES)
    await until(lambda: attachment.touched_bytes == memory.touched_bytes)
    assert told[-1] == memory.touched_bytes
    await attachment.close()


async def test_a_process_that_does_not_read_learns_the_last_word_when_it_does(
    door: MemoryDoor, memory: SlotMemory
) -> None:
    connection = connect(door)
    connection.send(HELLO.pack(MAGIC, door.offer.token))
    await until(lambda: door.num_clients == 1)
    (client,) = door._clients.values()
    last = 1 << 40
    count = 0
    while not client._unsent and count < 1_000_000:
        count += 1
        client.tell_touched(last + count)
    client.tell_touched(last)
    assert client._unsent, "the socket takes everything"
    loop = asyncio.get_running_loop()
    read = b""
    async with asyncio.timeout(LIMIT_S):
        while read[WELCOME.size :][-NUMBER.size :] != NUMBER.pack(last):
            read += await loop.sock_recv(connection, 1 << 20)
    connection.close()
    await until(lambda: door.num_clients == 0)


@pytest.mark.parametrize(
    "hello",
    [
        pytest.param(HELLO.pack(MAGIC, b"wrong"), id="wrong token"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: pool.example\r\nAccept: */*\r\n\r\n", id="garbage"),
    ],
)
async def test_who_has_no_token_gets_nothing(door: MemoryDoor, hello: bytes) -> None:
    connection = connect(door)
    connection.send(hello)
    assert await ends(connection)
    assert door.num_clients == 0
    connection.close()


async def test_a_truncated_hello_costs_nothing(door: MemoryDoor) -> None:
    connection = connect(door)
    connection.send(HELLO.pack(MAGIC, door.offer.token)[:20])
    connection.shutdown(socket.SHUT_WR)
    assert await ends(connection)
    connection.close()
    assert not door._greetings


async def test_who_says_nothing_is_not_waited_for(memory: SlotMemory, folder: Path) -> None:
    door = MemoryDoor(memory, folder, handshake_s=0.05)
    await door.start()
    connection = connect(door)
    connection.send(MAGIC)
    assert await ends(connection)
    connection.close()
    await door.close()


async def test_no_more_processes_than_there_may_be(door: MemoryDoor) -> None:
    attachments = [await Attachment.attach(door.offer, LIMIT_S) for _ in range(8)]
    with pytest.raises(LaneBroken):
        await Attachment.attach(door.offer, LIMIT_S)
    await attachments.pop().close()
    await until(lambda: door.num_clients == 7)
    attachments.append(await Attachment.attach(door.offer, LIMIT_S))
    for attachment in attachments:
        await attachment.close()


async def test_ten_thousand_connections_leave_nothing(door: MemoryDoor) -> None:
    before = descriptors()
    for number in range(10_000):
        connection = connect(door)
        if number % 3 == 0:
            connection.send(HELLO.pack(MAGIC, door.offer.token))
        elif number % 3 == 1:
            connection.send(b"garbage")
        connection.close()
        if number % 32 == 31:
            await asyncio.sleep(0)
    await until(lambda: not door._greetings and not door._clients)
    assert descriptors() == before


async def test_a_process_without_descriptors_accepts_again_later(
    door: MemoryDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = door._listener
    assert listener is not None
    failures = []
    number = listener.fileno()

    class Full:
        def accept(self) -> None:
            failures.append(1)
            raise OSError(24, "Too many open files")

        def fileno(self) -> int:
            return number

    monkeypatch.setattr("shared.lanes.shared_memory.door._RETRY_S", 0.01)
    door._listener = Full()  # type: ignore[assignment]
    connection = connect(door)
    await until(lambda: len(failures) >= 2)
    door._listener = listener
    connection.send(HELLO.pack(MAGIC, door.offer.token))
    await until(lambda: door.num_clients == 1)
    connection.close()


async def test_a_pool_that_goes_ends_attachments_and_its_socket(memory: SlotMemory, folder: Path) -> None:
    door = MemoryDoor(memory, folder)
    await door.start()
    attachment, client = await attached(door)
    kept = memory.keep(b"x" * 1000)
    client.hold(1, [kept])
    view = attachment.view(memory.place(kept), 1000)
    waiting = connect(door)
    await until(lambda: door._greetings)
    for _ in range(2):
        await door.close()
    assert os.listdir(folder) == []
    assert await ends(waiting)
    waiting.close()
    await asyncio.wait_for(attachment.ended.wait(), LIMIT_S)
    assert view == kept
    attachment.let_go(1)
    del view
    await attachment.close()


async def test_memory_that_cannot_be_shared_has_no_door(folder: Path) -> None:
    with pytest.raises(SettingsError, match="Linux only"):
        await MemoryDoor(SlotMemory(SLAB_BYTES, shared=False), folder).start()
