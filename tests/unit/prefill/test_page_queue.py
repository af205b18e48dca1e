"""Waiting for pages: in turn, bounded, within the deadline, and nothing is kept."""

import asyncio

import pytest

from services.prefill.page_queue import PageQueue
from shared.deadline import Deadline
from shared.errors import ContextTooLong, DeadlineExceeded, Overloaded
from tests.support.tiny import tiny_model
from tests.support.waiting import LIMIT_S, until


@pytest.fixture
def queue() -> PageQueue:
    return PageQueue(tiny_model("llama", num_pages=4).kv, max_waiting=2, stride_tokens=256)


async def hold(queue: PageQueue, num_tokens: int, log: list[str], name: str, end: asyncio.Event) -> None:
    async with queue.reserved([], num_tokens, Deadline.after(LIMIT_S)):
        log.append(name)
        await end.wait()


async def test_the_first_to_come_is_the_first_to_get(queue: PageQueue) -> None:
    log: list[str] = []
    done = [asyncio.Event() for _ in range(3)]
    tasks = [
        asyncio.create_task(hold(queue, n, log, name, e))
        for n, name, e in zip((256, 200, 64), "abc", done, strict=True)
    ]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert log == ["a"]
    assert queue.num_waiting == 2
    done[0].set()
    await tasks[0]
    await until(lambda: len(log) > 1)
    assert log == ["a", "b"]  # c would have fitted first, beside a, but does not overtake b; beside b it must wait
    done[1].set()
    done[2].set()
    await asyncio.gather(*tasks)
    assert log == ["a", "b", "c"]
    assert queue._kv.held == 0


async def test_too_many_too_long_too_late(queue: PageQueue) -> None:
    with pytest.raises(ContextTooLong):
        async with queue.reserved([], 257, Deadline.after(1)):
            pass
    async with queue.reserved([], 256, Deadline.after(1)):
        with pytest.raises(DeadlineExceeded):
            async with queue.reserved([], 64, Deadline.after(0.01)):
                pass
        log: list[str] = []
        stop = asyncio.Event()
        stop.set()
        waiting = [asyncio.create_task(hold(queue, 64, log, "w", stop)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            async with queue.reserved([], 64, Deadline.after(1)):
                pass
    await asyncio.gather(*waiting)
    assert log == ["w", "w"]
    assert queue.num_waiting == 0
    assert queue._kv.held == 0


async def test_windows_are_charged_for_the_stride() -> None:
    model = tiny_model("gemma3", num_pages=60)  # a full layer and three of a window of 100 tokens
    queue = PageQueue(model.kv, max_waiting=2, stride_tokens=256)
    async with queue.reserved([], 1900, Deadline.after(1)):
        with pytest.raises(DeadlineExceeded):
            async with queue.reserved([], 600, Deadline.after(0.01)):
                pass
    with pytest.raises(ContextTooLong, match="1920"):
        async with queue.reserved([], 1921, Deadline.after(1)):
            pass
    assert model.kv.held == 0


async def test_a_waiter_that_is_cancelled_takes_nothing(queue: PageQueue) -> None:
    async with queue.reserved([], 256, Deadline.after(1)):
        waiter = asyncio.create_task(hold(queue, 64, [], "w", asyncio.Event()))
        await until(lambda: queue.num_waiting == 1)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
    assert queue._kv.held == 0
    assert queue.num_waiting == 0
