"""Prompts with the same beginning: one produces it, the others wait, and nobody waits for nobody."""

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.prefill.promises import Promise, Promises
from shared.deadline import Deadline
from shared.engine.urgency import Urgency
from shared.errors import DeadlineExceeded, Overloaded
from shared.ids import BlockKey
from tests.support.waiting import LIMIT_S


def chain(text: str) -> list[BlockKey]:
    """Return the keys of a prompt with a block per letter."""
    return [BlockKey(text[: i + 1].encode().ljust(32)) for i in range(len(text))]


class Prompts:
    """Opens and closes turns by hand."""

    def __init__(self, promises: Promises) -> None:
        self._promises = promises
        self.open: dict[str, Promise] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._end: dict[str, asyncio.Event] = {}

    async def start(self, text: str, urgency: Urgency | None = None, within_s: float = LIMIT_S) -> None:
        self._end[text] = asyncio.Event()
        self._tasks[text] = asyncio.create_task(self._run(text, urgency or Urgency(0, 1), Deadline.after(within_s)))
        await settle()

    async def _run(self, text: str, urgency: Urgency, deadline: Deadline) -> None:
        async with self._promises.turn(chain(text), urgency, deadline) as promise:
            self.open[text] = promise
            await self._end[text].wait()
        del self.open[text]

    async def end(self, text: str) -> None:
        self._end[text].set()
        await self._tasks[text]
        await settle()

    async def cancel(self, text: str) -> None:
        self._tasks[text].cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._tasks[text]
        self.open.pop(text, None)
        await settle()

    async def result(self, text: str) -> None:
        await self._tasks[text]


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_prompts_that_share_nothing_do_not_wait() -> None:
    prompts = Prompts(Promises(max_waiting=8))
    await prompts.start("abc")
    await prompts.start("xbc")
    assert set(prompts.open) == {"abc", "xbc"}


async def test_a_second_prompt_goes_on_as_soon_as_the_shared_blocks_are_there() -> None:
    promises = Promises(max_waiting=8)
    prompts = Prompts(promises)
    await prompts.start("abcdefgh")
    await prompts.start("abcxy")
    assert promises.num_waiting == 1
    prompts.open["abcdefgh"].keep(2)
    await settle()
    assert "abcxy" not in prompts.open
    prompts.open["abcdefgh"].keep(3)
    await settle()
    assert "abcxy" in prompts.open
    assert promises.num_waiting == 0


async def test_of_several_that_wait_one_goes_on_to_produce_what_they_share_beyond() -> None:
    prompts = Prompts(Promises(max_waiting=8))
    await prompts.start("abc")
    await prompts.start("abcde1")
    await prompts.start("abcde2")
    prompts.open["abc"].keep(3)
    await settle()
    assert set(prompts.open) == {"abc", "abcde1"}
    prompts.open["abcde1"].keep(5)
    await settle()
    assert "abcde2" in prompts.open


async def test_a_prompt_that_fails_is_followed_by_the_next_in_line() -> None:
    prompts = Prompts(Promises(max_waiting=8))
    await prompts.start("abc")
    await prompts.start("abcd")
    await prompts.start("abce")
    await prompts.cancel("abc")
    assert set(prompts.open) == {"abcd"}
    await prompts.end("abcd")
    assert set(prompts.open) == {"abce"}


async def test_who_waits_lends_its_urgency_for_as_long_as_it_waits() -> None:
    prompts = Prompts(Promises(max_waiting=8))
    slow, quick, quickest = Urgency(0, 1000), Urgency(0, 1), Urgency(0, 0)
    own = slow.rank
    await prompts.start("abcdef", slow)
    await prompts.start("abx", quick)
    assert slow.rank == quick.rank
    prompts.open["abcdef"].keep(2)
    await settle()
    assert slow.rank == own
    await prompts.start("abcdy", quickest)
    assert slow.rank == quickest.rank
    await prompts.cancel("abcdy")
    assert slow.rank == own


async def test_waiting_is_bounded_in_time_and_number() -> None:
    promises = Promises(max_waiting=1)
    prompts = Prompts(promises)
    await prompts.start("abc")
    await prompts.start("abd")
    with pytest.raises(Overloaded):
        async with promises.turn(chain("abe"), Urgency(0, 1), Deadline.after(1)):
            pass
    await prompts.cancel("abd")
    await prompts.start("abd", within_s=0.01)
    with pytest.raises(DeadlineExceeded):
        await prompts.result("abd")
    assert promises.num_waiting == 0


@settings(max_examples=60)
@given(
    texts=st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=10),
    fate=st.randoms(use_true_random=False),
)
async def test_everyone_gets_a_turn_and_no_block_has_two_producers(texts: list[str], fate: random.Random) -> None:
    promises = Promises(max_waiting=10)
    produced: set[BlockKey] = set()  # what the device cache holds
    producing: set[BlockKey] = set()
    num_done = 0

    async def prompt(text: str) -> None:
        nonlocal num_done
        keys = chain(text)
        async with promises.turn(keys, Urgency(0, 1), Deadline.after(5)) as promise:
            todo = [key for key in keys if key not in produced]
            assert not producing & set(todo)
            producing.update(todo)
            try:
                for i, key in enumerate(keys):
                    if key in todo:
                        await asyncio.sleep(0)
                        if fate.random() < 0.1:
                            return  # it failed
                        produced.add(key)
                    promise.keep(i + 1)
            finally:
                producing.difference_update(todo)
        num_done += 1

    await asyncio.gather(*(prompt(text) for text in texts))
    assert promises.num_waiting == 0
    assert not promises._owners
