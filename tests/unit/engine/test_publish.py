"""Publishing from pages: what is granted, once, in order, and how a slow pool is felt."""

import asyncio
import threading
from typing import Any, cast

import pytest

import shared.engine.batching as batching
import shared.engine.publish as publish
from shared.engine.batching import Ready
from shared.engine.stage import HostStager
from shared.ids import BlockKey
from shared.kv.codec import Codec
from shared.kv.frame import open_frame
from tests.support.entries import entry_bytes
from tests.support.publishing import KEYS, NUM_BLOCKS, PublisherBench, SlowPool, granted
from tests.support.waiting import LIMIT_S, until


@pytest.fixture
def bench() -> PublisherBench:
    return PublisherBench()


async def test_entries_are_sent_once_in_the_order_they_became_ready_with_what_the_pages_hold(
    bench: PublisherBench,
) -> None:
    publisher = bench.publisher
    granted(publisher, 0b1111, 0b0101, 0, 0b1111)
    sending = asyncio.create_task(publisher.run())
    for layer in range(4):
        publisher.emit(Ready(layer, 0, 3))
        publisher.emit(Ready(layer, 0, 4))  # of the leading three there is nothing left to send
    publisher.finish()
    bench.pool.let.release()
    for _ in range(8):
        bench.pool.let.release()
    await sending
    sent = [(frame.layer, KEYS.index(frame.key)) for frame in bench.pool.frames]
    assert sent == [(0, 0), (0, 1), (0, 3), (1, 0), (1, 3), (2, 0), (2, 1), (2, 3), (3, 0), (3, 3)]
    for frame in bench.pool.frames:
        entry = bench.kv.block(frame.layer, bench.reservation, KEYS.index(frame.key))
        assert open_frame(frame) == entry_bytes(entry)
    assert publisher.num_entries_sent == 10
    assert publisher.num_blocks_sent == 4
    assert publisher.backlog_bytes == 0
    bench.copier.close()


async def test_outstanding_is_what_was_granted_less_what_was_given_up_less_what_was_emitted(
    bench: PublisherBench,
) -> None:
    publisher = bench.publisher
    publisher.limit(0, 0b1111)
    assert list(publisher.outstanding) == [0] * NUM_BLOCKS, "a limit gives nothing"
    granted(publisher, 0b0111, 0b1111)
    publisher.grant(0, 0b1000)  # asked again, and got the rest
    publisher.limit(1, 0b0011)
    assert list(publisher.outstanding) == [0b1111, 0b0011, 0, 0, 0, 0]
    for layer in (0, 2):
        publisher.emit(Ready(layer, 0, NUM_BLOCKS))
    publisher.finish()
    assert list(publisher.outstanding) == [0b1010, 0b0010, 0, 0, 0, 0]
    for _ in range(2):
        bench.pool.let.release()
    await publisher.run()
    sent = [(frame.layer, KEYS.index(frame.key)) for frame in bench.pool.frames]
    assert sent == [(0, 0), (0, 1), (2, 0)], "nothing that was not granted, or that was given up"
    bench.copier.close()


async def test_a_publisher_is_full_until_the_pool_has_taken_enough(
    bench: PublisherBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = bench.kv.layout.entry_bytes(0)
    monkeypatch.setattr(publish, "MAX_BACKLOG_BYTES", 2 * entry)
    publisher = bench.publisher
    granted(publisher, *[0b11] * NUM_BLOCKS)
    sending = asyncio.create_task(publisher.run())
    publisher.emit(Ready(0, 0, 2))
    assert (publisher.full, publisher.backlog_bytes) == (False, 2 * entry)
    publisher.emit(Ready(1, 0, 1))
    publisher.emit(Ready(1, 1, 2))
    assert (publisher.full, publisher.backlog_bytes) == (True, 4 * entry)
    await asyncio.sleep(0.02)
    assert (publisher.full, bench.num_woken) == (True, 0), "nothing was taken yet"
    bench.pool.let.release()
    await until(lambda: bench.num_woken)
    assert (publisher.full, publisher.backlog_bytes) == (False, 2 * entry)
    for _ in range(2):
        bench.pool.let.release()
    publisher.finish()
    await sending
    assert (publisher.backlog_bytes, bench.num_woken) == (0, 3)
    bench.copier.close()


async def test_blocks_count_as_sent_when_all_layers_are_or_need_not_be(bench: PublisherBench) -> None:
    publisher = bench.publisher
    granted(publisher, 0b1111, 0, 0b1000)
    sending = asyncio.create_task(publisher.run())
    for layer in range(3):
        publisher.emit(Ready(layer, 0, 4))
        bench.pool.let.release()
    await until(lambda: bench.num_woken == 3)
    assert publisher.num_blocks_sent == 0, "the last layer is not even computed"
    publisher.emit(Ready(3, 0, 2))
    bench.pool.let.release()
    await until(lambda: publisher.num_blocks_sent == 2)
    publisher.emit(Ready(3, 2, 4))
    await asyncio.sleep(0.02)
    assert publisher.num_blocks_sent == 2, "the pool has not taken it"
    bench.pool.let.release()
    publisher.finish()
    await sending
    assert publisher.num_blocks_sent == 4
    bench.copier.close()


async def test_what_has_room_is_written_there_and_the_rest_travels(bench: PublisherBench) -> None:
    publisher = bench.publisher
    bench.pool.has_room_for = {KEYS[0], KEYS[2], KEYS[3]}
    granted(publisher, *[0b11] * NUM_BLOCKS)
    for layer in range(2):
        publisher.emit(Ready(layer, 0, NUM_BLOCKS))
    publisher.finish()
    for _ in range(20):
        bench.pool.let.release()
    await publisher.run()
    assert [(frame.layer, KEYS.index(frame.key)) for frame in bench.pool.placed()] == [
        (layer, block) for layer in range(2) for block in (0, 2, 3)
    ]
    assert sorted((frame.layer, KEYS.index(frame.key)) for frame in bench.pool.frames) == [
        (layer, block) for layer in range(2) for block in range(NUM_BLOCKS)
    ]
    for frame in bench.pool.frames:
        entry = bench.kv.block(frame.layer, bench.reservation, KEYS.index(frame.key))
        assert open_frame(frame) == entry_bytes(entry)
    assert (publisher.num_entries_sent, publisher.backlog_bytes) == (12, 0)
    bench.copier.close()


async def test_one_message_names_a_bounded_part_of_the_room(
    bench: PublisherBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "MAX_PLACED_BYTES", 4 * bench.kv.layout.entry_bytes(0) + 1)
    publisher = bench.publisher
    bench.pool.has_room_for = set(KEYS)
    granted(publisher, *[0b1] * NUM_BLOCKS)
    publisher.emit(Ready(0, 0, NUM_BLOCKS))
    publisher.finish()
    for _ in range(2):
        bench.pool.let.release()
    await publisher.run()
    assert (bench.pool.asked, bench.pool.messages, len(bench.pool.placed())) == ([4, 2], [4, 2], 6)
    bench.copier.close()


async def test_a_pool_without_room_is_asked_once_for_a_layer(
    bench: PublisherBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "MAX_PLACED_BYTES", 1)
    publisher = bench.publisher
    granted(publisher, *[0b1] * NUM_BLOCKS)
    publisher.emit(Ready(0, 0, NUM_BLOCKS))
    publisher.finish()
    for _ in range(NUM_BLOCKS):
        bench.pool.let.release()
    await publisher.run()
    assert bench.pool.asked == [1]
    assert [KEYS.index(frame.key) for frame in bench.pool.frames] == list(range(NUM_BLOCKS))
    bench.copier.close()


async def test_the_next_message_is_sealed_while_one_leaves_but_no_further_one(
    bench: PublisherBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "MAX_PLACED_BYTES", bench.kv.layout.entry_bytes(0))
    bench.pool.has_room_for = set(KEYS)
    granted(bench.publisher, 0b1111)
    running = asyncio.create_task(bench.publisher.run())
    for layer in range(4):
        bench.publisher.emit(Ready(layer, 0, 1))
    bench.publisher.finish()
    pool = bench.pool

    async def until_sent(count: int) -> None:
        await until(lambda: len(pool.frames) == count)

    async def until_begun(count: int) -> None:
        await until(lambda: len(pool.slots) >= count)
        await asyncio.sleep(0.01)
        assert len(pool.slots) == count

    for num_sent in range(4):
        await until_begun(min(4, num_sent + publish.MAX_SEALED))
        pool.let.release()
        await until_sent(num_sent + 1)
    await running
    assert [frame.layer for frame in bench.pool.placed()] == list(range(4))
    bench.copier.close()


async def test_the_first_layer_finds_room_that_was_asked_for_while_it_was_computed(bench: PublisherBench) -> None:
    publisher, pool = bench.publisher, bench.pool
    pool.has_room_for = set(KEYS) - {KEYS[1]}
    granted(publisher, *[0b11] * NUM_BLOCKS)
    running = asyncio.create_task(publisher.run())
    await until(lambda: pool.asked == [NUM_BLOCKS])
    pool.has_room_for = set(KEYS)
    for _ in range(9):
        pool.let.release()
    publisher.emit(Ready(0, 0, 4))
    await until(lambda: len(pool.frames) == 4)
    assert pool.asked == [NUM_BLOCKS, 1], "only what had found none"
    publisher.emit(Ready(0, 4, NUM_BLOCKS))
    publisher.emit(Ready(1, 0, NUM_BLOCKS))
    publisher.finish()
    await running
    assert pool.asked == [NUM_BLOCKS, 1, NUM_BLOCKS]
    assert len(pool.placed()) == len(pool.slots) == 2 * NUM_BLOCKS
    bench.copier.close()


async def test_a_pool_with_little_room_is_asked_again_when_it_has_taken_what_is_there(
    bench: PublisherBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries would travel that need not, for no more than that their room was asked for early."""
    monkeypatch.setattr(batching, "MAX_PLACED_BYTES", 2 * bench.kv.layout.entry_bytes(0))

    class Little(SlowPool):
        async def room(self, keys: list[BlockKey], num_bytes: int) -> list[memoryview | None]:
            self.has_room_for = set(keys[: 3 - len(self.slots) + len(self.frames)])
            return await super().room(keys, num_bytes)

    bench.pool = pool = Little()
    publisher = bench.made(HostStager())
    granted(publisher, *[0b11] * NUM_BLOCKS)
    for layer in range(2):
        publisher.emit(Ready(layer, 0, NUM_BLOCKS))
    publisher.finish()
    for _ in range(2 * NUM_BLOCKS):
        pool.let.release()
    await publisher.run()
    assert len(pool.placed()) == len(pool.frames) == 2 * NUM_BLOCKS
    assert publisher.num_blocks_sent == 0, "there are more layers"
    assert publisher.backlog_bytes == 0
    bench.copier.close()


async def test_what_is_complete_goes_together_and_what_is_not_goes_alone(bench: PublisherBench) -> None:
    """A message with layers that are still to be computed would leave with the last of them."""

    class Computing(HostStager):
        num_complete = 0

        def is_reached(self, mark: Any) -> bool:
            return bool(mark < self.num_complete)

    stager = Computing()
    publisher = bench.made(stager)
    bench.pool.has_room_for = set(KEYS)
    granted(publisher, 0b1111)
    for layer in range(3):
        publisher.emit(Ready(layer, 0, 1, cast("Any", layer)))
    for _ in range(4):
        bench.pool.let.release()
    running = asyncio.create_task(publisher.run())
    await until(lambda: len(bench.pool.messages) == 3)
    stager.num_complete = 4
    publisher.emit(Ready(3, 0, 1, cast("Any", 3)))
    publisher.emit(Ready(3, 0, 1, cast("Any", 9)))  # nothing of it is ours
    publisher.finish()
    await running
    assert bench.pool.messages == [1, 1, 1, 1]
    behind = bench.made(stager)
    granted(behind, 0b1111)
    for layer in range(4):
        behind.emit(Ready(layer, 0, 1, cast("Any", layer)))
    behind.finish()
    bench.pool.let.release()
    await behind.run()
    assert bench.pool.messages[4:] == [4]
    bench.copier.close()


async def test_entries_in_another_codec_travel() -> None:
    bench = PublisherBench(Codec.LZ4)
    bench.pool.has_room_for = set(KEYS)
    granted(bench.publisher, 0b1)
    bench.publisher.emit(Ready(0, 0, 1))
    bench.publisher.finish()
    bench.pool.let.release()
    await bench.publisher.run()
    assert (bench.pool.asked, len(bench.pool.frames)) == ([], 1)
    bench.copier.close()


async def test_who_is_cancelled_returns_when_its_room_is_not_written_any_more(bench: PublisherBench) -> None:
    """Whoever owns the room then takes it back."""
    writing, let = threading.Event(), threading.Event()

    class Held(HostStager):
        def place(self, *arguments: Any) -> list[list[int]]:
            writing.set()
            assert let.wait(LIMIT_S)
            return super().place(*arguments)

    publisher = bench.made(Held())
    bench.pool.has_room_for = set(KEYS)
    granted(publisher, 0b1)
    publisher.emit(Ready(0, 0, 1))
    running = asyncio.create_task(publisher.run())
    await until(writing.is_set)
    for _ in range(3):  # a call that ends may be cancelled more than once
        running.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not running.done()
    let.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert bench.pool.frames == []
    bench.copier.close()


async def test_the_rate_of_sending_is_that_of_the_time_in_which_something_moves(bench: PublisherBench) -> None:
    publisher, rate = bench.publisher, bench.transfer.sending
    granted(publisher, 0b0001, 0b0001)
    sending = asyncio.create_task(publisher.run())
    await asyncio.sleep(0.2)  # the model computes
    publisher.emit(Ready(0, 0, 2))
    publisher.finish()
    bench.pool.let.release()
    await sending
    num_bytes = 2 * bench.kv.layout.entry_bytes(0)
    assert rate.per_s > num_bytes / 0.2
    bench.copier.close()


@pytest.mark.parametrize(("codec", "gains"), [(Codec.RAW, False), (Codec.ZSTD, True)])
async def test_what_a_codec_gains_is_counted(codec: Codec, *, gains: bool) -> None:
    bench = PublisherBench(codec)
    granted(bench.publisher, 0b1111, 0b0001)
    for layer in range(4):
        bench.publisher.emit(Ready(layer, 0, 2))
    bench.publisher.finish()
    for _ in range(4):
        bench.pool.let.release()
    await bench.publisher.run()
    labels = {"codec": codec.name.lower()}
    raw, coded = (
        bench.metrics.registry.get_sample_value(f"prfaas:sent_{kind}_bytes_total", labels) for kind in ("raw", "coded")
    )
    assert raw == sum(bench.kv.layout.entry_bytes(frame.layer) for frame in bench.pool.frames) > 0
    assert coded == sum(len(frame.payload) for frame in bench.pool.frames)
    assert (coded < raw) is gains
    bench.copier.close()
