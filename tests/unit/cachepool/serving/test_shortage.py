import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from services.cachepool.serving import shortage
from services.cachepool.serving.shortage import Shortage
from tests.support.waiting import until


class AskedStore:
    def __init__(self, *, helps: bool = True) -> None:
        self._helps = helps
        self.asked: list[tuple[Sequence[int], int]] = []

    def make_slots(self, sizes: Sequence[int]) -> bool:
        self.asked.append((sizes, threading.get_ident()))
        return self._helps


async def test_the_event_loop_is_asked_once_by_however_many_threads() -> None:
    store: Any = AskedStore()
    lacking = Shortage(store)
    threads = [threading.Thread(target=lacking, args=([100, 200],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    await until(lambda: bool(store.asked))
    assert store.asked == [([100, 200], threading.get_ident())]
    await asyncio.to_thread(lacking, [300])
    await until(lambda: len(store.asked) == 2)


async def test_what_did_not_help_is_not_tried_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortage, "PAUSE_S", 0.1)
    store: Any = AskedStore(helps=False)
    lacking = Shortage(store)
    started = asyncio.get_running_loop().time()
    while len(store.asked) < 2:
        lacking([100])
        await asyncio.sleep(0)
    assert asyncio.get_running_loop().time() - started >= 0.1


def test_without_a_loop_nothing_happens() -> None:
    store: Any = AskedStore()

    async def made() -> Shortage:
        return Shortage(store)

    asyncio.run(made())([100])
    assert not store.asked
