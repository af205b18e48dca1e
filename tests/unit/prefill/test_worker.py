"""A prefill worker and a pool: every block is there at the end, and nobody computes what another has."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import numpy as np
import pytest
import torch

from services.prefill.engine import PrefillEngine
from services.prefill.promises import Promises
from services.prefill.worker import PrefillWorker, Progress, Prompt
from shared.deadline import Deadline
from shared.engine.pages import PageQueue
from shared.engine.thread import WorkThread
from shared.ids import BlockKey
from shared.kv.codec import Codec
from shared.kv.entries import BlockEntries
from shared.kv.frame import open_frame
from shared.metrics import Metrics
from shared.model.layers.batch import Batch, Span
from shared.pool.memory import MemoryPool
from tests.support.entries import entry_bytes
from tests.support.parts import access_to, transfer_of
from tests.support.tiny import MODELS, prompt, tiny_model
from tests.support.waiting import LIMIT_S, until

BLOCK, CHUNK = 64, 128


class Bench:
    def __init__(self, name: str, pool: MemoryPool, worker: PrefillWorker) -> None:
        self.name, self.pool = name, pool
        self.worker = worker
        self.model = tiny_model(name)

    def keys(self, tokens: list[int]) -> list[BlockKey]:
        return list(self.model.keys(tokens, ""))

    async def prefill(self, tokens: list[int]) -> list[Progress]:
        asked = Prompt(tokens, self.keys(tokens), (), Codec.RAW)
        return [progress async for progress in self.worker.prefill(asked, Deadline.after(LIMIT_S))]

    def check(self, tokens: list[int]) -> None:
        """Compare what the pool has with what one pass over the whole prompt makes."""
        kv = self.model.kv
        reservation = kv.reserve([], len(tokens))
        assert reservation is not None
        batch = Batch.build([Span(reservation.tables, 0, len(tokens))], kv.page_tokens)
        self.model.transformer.forward(torch.tensor(tokens), batch, kv)
        for block, key in enumerate(self.keys(tokens)):
            for layer in range(self.model.layout.num_layers):
                stored = np.frombuffer(open_frame(self.pool.frames[key, layer]), np.float32)
                expected = np.frombuffer(entry_bytes(kv.block(layer, reservation, block)), np.float32)
                np.testing.assert_allclose(stored, expected, rtol=1e-3, atol=1e-4)
        kv.release(reservation)


@asynccontextmanager
async def bench(name: str = "llama", pool: MemoryPool | None = None) -> AsyncIterator[Bench]:
    model, metrics, thread = tiny_model(name), Metrics(), WorkThread("torch")
    pool = pool or MemoryPool()
    with transfer_of(model, metrics) as transfer:
        engine = PrefillEngine(model.transformer, model.kv, thread, transfer.stager, CHUNK, metrics)
        pages, promises = PageQueue(model.kv, 8), Promises(8)
        worker = PrefillWorker(access_to(pool), transfer, engine, pages, promises, 2 * CHUNK, metrics)
        running = asyncio.create_task(engine.run())
        try:
            yield Bench(name, pool, worker)
        finally:
            running.cancel()
            await asyncio.wait({running})
            thread.close()
    assert model.kv.held == 0
    assert pool.idle
    model.kv.check()


@pytest.mark.parametrize("name", MODELS)
async def test_a_prompt_nobody_knows_is_computed_and_stored_whole(name: str) -> None:
    async with bench(name) as b:
        tokens = prompt(7 * BLOCK)
        assert await b.prefill(tokens) == [Progress(0, 0, False), Progress(7, 7 * BLOCK, True)]
        b.check(tokens)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("same_worker", [True, False], ids=["from the device", "from the pool"])
async def test_a_longer_prompt_goes_on_from_what_is_there(name: str, same_worker: bool) -> None:
    tokens = prompt(7 * BLOCK)
    async with bench(name) as first:
        await first.prefill(tokens[: 4 * BLOCK])
        async with bench(name, first.pool) as other:
            again = first if same_worker else other
            assert await again.prefill(tokens) == [Progress(4, 0, False), Progress(7, 3 * BLOCK, True)]
        again.check(tokens)


async def test_what_the_pool_lost_and_the_device_has_is_sent_again() -> None:
    async with bench() as b:
        tokens = prompt(3 * BLOCK)
        await b.prefill(tokens)
        b.pool._frames.clear()
        assert (await b.prefill(tokens))[-1] == Progress(3, 0, True)
        b.check(tokens)


async def test_a_writer_that_goes_without_finishing_is_replaced() -> None:
    async with bench() as b:
        tokens = prompt(3 * BLOCK)
        key = b.keys(tokens)[1]
        async with b.pool.publish(Deadline.after(LIMIT_S)) as other:
            await other.open(b.model.layout, [BlockEntries(key, b.model.layout.all_layers)])
            asked = Prompt(tokens, b.keys(tokens), (), Codec.RAW)
            async with aclosing(b.worker.prefill(asked, Deadline.after(LIMIT_S))) as progress:
                assert await anext(progress) == Progress(0, 0, False)
        # The prompt was given up when it had claimed all but what the other wrote: nothing of it is held any more.
        assert b.pool.idle
        await b.prefill(tokens)
        b.check(tokens)


async def test_of_two_prompts_with_the_same_beginning_one_computes_it() -> None:
    async with bench() as b:
        tokens = prompt(4 * BLOCK)
        both = await asyncio.gather(b.prefill(tokens), b.prefill([*tokens[: 3 * BLOCK], *prompt(BLOCK, seed=5)]))
        assert sum(progress[-1].computed_tokens for progress in both) == 5 * BLOCK
        b.check(tokens)


async def test_a_prompt_that_is_cancelled_leaves_nothing_behind() -> None:
    async with bench() as b:
        tokens = prompt(14 * BLOCK)
        asking = asyncio.create_task(b.prefill(tokens))
        await until(lambda: b.pool.frames)
        asking.cancel()
        await asyncio.wait({asking})
        assert b.pool.idle
        assert (await b.prefill(tokens))[-1].num_blocks_done == 14
        b.check(tokens)
