"""The worker thread outlives its waiters, never the other way round."""

import asyncio
import threading

import pytest

from shared.engine.thread import LONG_PROMPT_TOKENS, WorkThread, beside_loop, end_all
from tests.support.waiting import LIMIT_S


async def test_results_and_errors_come_back() -> None:
    thread = WorkThread("t")
    assert await thread.run(lambda: threading.current_thread().name.startswith("t"))
    with pytest.raises(ZeroDivisionError):
        await thread.run(lambda: 1 // 0)
    thread.close()
    thread.close()


async def test_a_cancelled_waiter_leaves_only_when_the_call_has_ended() -> None:
    thread = WorkThread("t")
    running, release = threading.Event(), threading.Event()
    ended = False

    def call() -> None:
        nonlocal ended
        running.set()
        release.wait(LIMIT_S)
        ended = True

    waiter = asyncio.create_task(thread.run(call))
    await asyncio.to_thread(running.wait, LIMIT_S)
    waiter.cancel()
    await asyncio.sleep(0.02)
    waiter.cancel()
    await asyncio.sleep(0.02)
    assert not waiter.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert ended
    thread.close()


async def test_a_call_that_can_be_told_is_told_when_its_waiter_is_cancelled() -> None:
    thread = WorkThread("t")
    running, stopped = threading.Event(), threading.Event()

    def call() -> bool:
        running.set()
        return stopped.wait(LIMIT_S)

    waiter = asyncio.create_task(thread.run(call, stopped.set))
    await asyncio.to_thread(running.wait, LIMIT_S)
    assert not stopped.is_set()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiter, LIMIT_S)
    thread.close()


@pytest.mark.parametrize(
    ("num_tokens", "on_loop"), [(1, True), (LONG_PROMPT_TOKENS - 1, True), (LONG_PROMPT_TOKENS, False)]
)
async def test_a_long_prompt_is_worked_on_beside_the_loop(num_tokens: int, on_loop: bool) -> None:
    ran_in = await beside_loop(num_tokens, threading.current_thread)
    assert (ran_in is threading.current_thread()) == on_loop


async def test_tasks_have_ended_whatever_happens_to_who_ends_them() -> None:
    let = asyncio.Event()

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await let.wait()

    tasks = [asyncio.create_task(slow()) for _ in range(2)]
    await asyncio.sleep(0)
    ending = asyncio.create_task(end_all(*tasks))
    for _ in range(3):
        await asyncio.sleep(0)
        ending.cancel()
    await asyncio.sleep(0)
    assert not ending.done()
    let.set()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert all(task.cancelled() for task in tasks)
    await end_all(*tasks)
