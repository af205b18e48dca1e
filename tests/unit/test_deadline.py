"""Deadlines."""

import asyncio
import time

import pytest

from shared.deadline import Deadline
from shared.errors import DeadlineExceeded


def test_remaining_is_never_negative() -> None:
    assert Deadline.after(-5).remaining() == 0.0
    assert Deadline.after(-5).expired
    deadline = Deadline.after(60)
    assert 59 < deadline.remaining() <= 60
    assert not deadline.expired
    assert deadline.earliest(Deadline.after(1)) < deadline


def test_check() -> None:
    Deadline.after(60).check("hashing")
    with pytest.raises(DeadlineExceeded, match="while hashing"):
        Deadline.after(0).check("hashing")


async def test_scope_ends_a_wait() -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="while fetching blocks"):
        async with Deadline.after(0.02).scope("fetching blocks"):
            await asyncio.sleep(30)
    assert time.monotonic() - started < 20


async def test_scope_leaves_other_errors_alone() -> None:
    with pytest.raises(TimeoutError, match="of the body"):
        async with Deadline.after(30).scope():
            raise TimeoutError("of the body")
    async with Deadline.after(30).scope():
        pass


async def test_a_cancelled_scope_stays_cancelled() -> None:
    async def body() -> None:
        async with Deadline.after(30).scope():
            await asyncio.sleep(30)

    task = asyncio.create_task(body())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
