"""Pages that are taken next have memory behind them before anybody writes to them."""

import asyncio
import resource

import torch

from services.decode.ready_pages import ReadyPages
from shared.kv.layout import KvLayout, LayerSpec
from shared.model.pages.kv import PagedKv
from tests.support.waiting import LIMIT_S, until

LAYOUT = KvLayout((LayerSpec(None, 2, 64),) * 3, "float32")  # a page is 192 KiB


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


async def test_it_stays_ahead_of_what_is_taken_and_takes_no_more() -> None:
    kv = PagedKv(LAYOUT, 400)
    assert kv.page_bytes == 192 << 10
    ready = ReadyPages(kv, ahead_bytes=100 * kv.page_bytes)
    task = asyncio.create_task(ready.run())
    await until(lambda: ready.num_ready == 100)
    reservation = kv.reserve([], 30 * 64)
    assert reservation is not None
    ready.pages_taken()
    await until(lambda: ready.num_ready == 130)
    kv.release(reservation)
    reservation = kv.reserve([], 390 * 64)
    ready.pages_taken()
    async with asyncio.timeout(LIMIT_S):
        await task
    assert ready.num_ready == 400


def test_what_is_in_a_page_stays_and_the_rest_costs_no_fault_any_more() -> None:
    kv = PagedKv(LAYOUT, 64)
    kv.keys_of(1)[5] = 7.0
    kv.populate(0, 64)
    before = faults()
    for layer in range(3):
        kv.keys_of(layer)[10:60] = 1.0
    assert faults() - before < 50  # of 2,400
    assert torch.all(kv.keys_of(1)[5] == 7.0)
    assert not kv.keys_of(1)[6].any()
