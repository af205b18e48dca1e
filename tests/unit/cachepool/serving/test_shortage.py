import asyncio
import threading
from collections.abc import Sequence
from typing import Any

from services.cachepool.serving.shortage import Shortage
from tests.support.waiting import until


class AskedStore:
    def __init__(self) -> None:
        self.asked: list[tuple[Sequence[int], int]] = []

    def make_slots(self, sizes: Sequence[int]) -> bool:
        self.asked.append((sizes, threading.get_ident()))
        return True


async def test_the_event_loop_is_asked_once_by_however_many_threads() -> None:
    store: Any = AskedStore()
    shortage = Shortage(store)
    threads = [threading.Thread(target=shortage, args=([100, 200],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    await until(lambda: bool(store.asked))
    assert store.asked == [([100, 200], threading.get_ident())]
    await asyncio.to_thread(shortage, [300])
    await until(lambda: len(store.asked) == 2)


def test_without_a_loop_nothing_happens() -> None:
    store: Any = AskedStore()

    async def made() -> Shortage:
        return Shortage(store)

    asyncio.run(made())([100])
    assert not store.asked
