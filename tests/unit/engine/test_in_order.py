"""Work ahead of a consumer: results in order, a bounded number of them, errors last, and nothing left behind."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from shared.engine.in_order import in_order
from tests.support.waiting import until

MOST = 2


class Work:
    """Begins at once, and ends when it is let."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.let = {number: asyncio.Event() for number in range(8)}
        self.is_closed = False

    async def items(self, count: int, error: Exception | None = None) -> AsyncGenerator[int, None]:
        try:
            for number in range(count):
                yield number
            if error is not None:
                raise error
        finally:
            self.is_closed = True

    async def do(self, number: int) -> int:
        self.begun.append(number)
        try:
            await self.let[number].wait()
        finally:
            self.ended.append(number)
        if number == 7:
            raise ValueError("seven")
        return number * number

    def let_all(self) -> None:
        for event in self.let.values():
            event.set()


async def test_results_come_in_the_order_of_the_items() -> None:
    work = Work()
    work.let[1].set()
    async with aclosing(in_order(work.items(3), work.do, MOST)) as results:
        first = asyncio.ensure_future(anext(results))
        await until(lambda: work.ended == [1])
        assert not first.done()
        work.let_all()
        assert await first == 0
        assert [result async for result in results] == [1, 4]
    assert work.is_closed


async def test_as_many_are_begun_as_the_consumer_is_not_done_with() -> None:
    work = Work()
    work.let_all()
    async with aclosing(in_order(work.items(5), work.do, MOST)) as results:
        for number in range(5):
            assert await anext(results) == number * number
            await asyncio.sleep(0.01)
            assert work.begun == list(range(min(5, number + MOST))), "this one is in hand, and another is ready"


@pytest.mark.parametrize(("count", "error"), [(8, None), (2, KeyError("items"))])
async def test_an_error_comes_after_all_that_came_before(count: int, error: Exception | None) -> None:
    work = Work()
    work.let_all()
    results = in_order(work.items(count, error), work.do, MOST)
    assert [await anext(results) for _ in range(min(count, 7))] == [n * n for n in range(min(count, 7))]
    with pytest.raises(KeyError if error else ValueError):
        await anext(results)
    assert work.is_closed


async def test_who_stops_early_leaves_no_work_behind() -> None:
    work = Work()
    work.let[0].set()
    async with aclosing(in_order(work.items(5), work.do, 3)) as results:
        await anext(results)
        await until(lambda: work.begun == [0, 1, 2])
    assert sorted(work.ended) == [0, 1, 2]
    assert work.is_closed


async def test_nothing_comes_of_nothing() -> None:
    work = Work()
    assert [result async for result in in_order(work.items(0), work.do, MOST)] == []
