"""The watch over work that has to end: an engine's steps."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from shared.engine.thread import WorkThread
from shared.service.health import Health
from shared.service.watchdog import watch_work
from tests.support.waiting import until


@pytest.fixture
def thread() -> Iterator[WorkThread]:
    thread = WorkThread("watched")
    yield thread
    thread.close()


def ready() -> Health:
    health = Health("model")
    health.set("model", True)
    return health


async def test_a_step_that_does_not_end_ends_the_worker(thread: WorkThread, capfd: pytest.CaptureFixture[str]) -> None:
    health, release, ended = ready(), threading.Event(), asyncio.Event()
    watch = asyncio.create_task(watch_work(lambda: thread.busy_s, 0.1, health, "model", ended.set))
    step = asyncio.create_task(thread.run(lambda: release.wait(20)))
    await asyncio.wait_for(ended.wait(), 20)
    assert not health.ready
    assert health.conditions["model"].detail.startswith("a step has taken 0.")
    assert "in watch_work" in capfd.readouterr().err
    release.set()
    await step
    await watch


async def test_steps_that_end_and_calls_that_may_take_long_are_left_alone(thread: WorkThread) -> None:
    health, release = ready(), threading.Event()
    watch = asyncio.create_task(watch_work(lambda: thread.busy_s, 0.2, health, "model", lambda: pytest.fail("ended")))
    for _ in range(30):
        await thread.run(lambda: release.wait(0.02))
    long = asyncio.create_task(thread.run(lambda: release.wait(20), may_take_long=True))
    await asyncio.sleep(0.8)
    assert thread.busy_s == 0.0
    assert health.ready
    assert not watch.done()
    release.set()
    await long
    watch.cancel()
    await asyncio.wait({watch})


async def test_the_thread_tells_how_long_its_call_has_run(thread: WorkThread) -> None:
    release = threading.Event()
    assert thread.busy_s == 0.0
    call = asyncio.create_task(thread.run(lambda: release.wait(20)))
    await until(lambda: thread.busy_s > 0.05)
    release.set()
    await call
    assert thread.busy_s == 0.0
