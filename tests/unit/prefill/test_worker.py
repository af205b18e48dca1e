"""A prefill worker and a pool: every block is there at the end, and nobody computes what another has."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing, asynccontextmanager
from typing import Any

import numpy as np
import pytest
import torch

from services.prefill import worker
from services.prefill.backlog import Backlog
from services.prefill.engine import PrefillEngine
from services.prefill.page_queue import PageQueue
from services.prefill.promises import Promises
from services.prefill.worker import PrefillWorker, Progress, Prompt
from shared.deadline import Deadline
from shared.engine.thread import WorkThread
from shared.ids import BlockKey
from shared.kv.codec import Codec
from shared.kv.entries import BlockEntries
from shared.kv.frame import open_frame
from shared.metrics import Metrics
from shared.model.layers.batch import Batch, Span
from shared.model.transformer import Transformer
from shared.pool.lanes.lane import Arrived
from shared.pool.memory import MemoryPool
from shared.timings import NO_LAYERS, PrefillTimings
from tests.support.entries import entry_bytes
from tests.support.gate import Gate
from tests.support.parts import access_to, step_costs, transfer_of
from tests.support.tiny import MODELS, prompt, tiny_model
from tests.support.waiting import LIMIT_S, until

BLOCK, CHUNK = 64, 128
ALL = 0b1111


class WatchedPool(MemoryPool):
    """Counts who reads."""

    num_fetches = 0

    def fetch(self, *args: Any, doubted: bool = False) -> AsyncGenerator[Arrived, None]:
        self.num_fetches += 1
        return super().fetch(*args, doubted=doubted)


class Bench:
    def __init__(
        self,
        name: str,
        pool: MemoryPool,
        worker: PrefillWorker,
        backlog: Backlog,
        transformer: Transformer,
        metrics: Metrics,
    ) -> None:
        self.name, self.pool, self.metrics = name, pool, metrics
        self.worker, self.backlog = worker, backlog
        self.transformer = transformer
        self.model = tiny_model(name)
        self.timings: PrefillTimings | None = None  # of the latest prompt

    def keys(self, tokens: list[int]) -> list[BlockKey]:
        return list(self.model.keys(tokens, ""))

    def count(self, name: str) -> float:
        """Return a counter."""
        value = self.metrics.registry.get_sample_value(f"prfaas:{name}_total")
        assert value is not None
        return value

    async def prefill(self, tokens: list[int]) -> list[Progress]:
        asked = Prompt(tokens, self.keys(tokens), (), Codec.RAW)
        found = [progress async for progress in self.worker.prefill(asked, Deadline.after(LIMIT_S))]
        self.timings = found[-1].timings
        return [progress._replace(timings=None) for progress in found]

    def check(self, tokens: list[int], lacking: Collection[tuple[int, int]] = ()) -> None:
        """Compare what the pool has with what one pass over the whole prompt makes; it lacks these blocks' layers."""
        kv = self.model.kv
        reservation = kv.reserve([], len(tokens))
        assert reservation is not None
        batch = Batch.build([Span(reservation.tables, 0, len(tokens))], kv.page_tokens)
        self.model.transformer.forward(torch.tensor(tokens), batch, kv)
        for block, key in enumerate(self.keys(tokens)):
            for layer in range(self.model.layout.num_layers):
                assert ((key, layer) in self.pool.frames) == ((block, layer) not in lacking)
                if (block, layer) in lacking:
                    continue
                stored = np.frombuffer(open_frame(self.pool.frames[key, layer]), np.float32)
                expected = np.frombuffer(entry_bytes(kv.block(layer, reservation, block)), np.float32)
                np.testing.assert_allclose(stored, expected, rtol=1e-3, atol=1e-4)
        kv.release(reservation)


@asynccontextmanager
async def bench(name: str = "llama", pool: MemoryPool | None = None) -> AsyncIterator[Bench]:
    model, metrics, thread = tiny_model(name), Metrics(), WorkThread("torch")
    pool = pool or MemoryPool()
    with transfer_of(model, metrics) as transfer:
        costs = step_costs(3)
        engine = PrefillEngine(model.transformer, thread, transfer, CHUNK, metrics, costs)
        pages, promises = PageQueue(model.kv, 8, 2 * CHUNK), Promises(8)
        backlog = Backlog(costs, CHUNK)
        worker = PrefillWorker(access_to(pool), transfer, engine, pages, promises, backlog, metrics)
        running = asyncio.create_task(engine.run())
        try:
            yield Bench(name, pool, worker, backlog, model.transformer, metrics)
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


async def test_times_of_a_prompt_follow_one_another_in_each_layer() -> None:
    async with bench() as b:
        await b.prefill(prompt(7 * BLOCK))
        times = b.timings
        assert times is not None
        phases = [0.0, times.turn_s, times.reserved_s, times.ready_s, times.computed_s, times.stored_s]
        assert phases == sorted(phases)
        (computed_first, computed_last), (_, sent_last) = times.computed, times.sent
        assert list(computed_first) == sorted(computed_first)
        assert len(computed_first) == b.model.layout.num_layers
        assert all(map(float.__le__, computed_first, computed_last))
        assert all(map(float.__le__, computed_last, sent_last)), "no layer is sent before it is computed"
        assert times.num_entries_sent == 7 * b.model.layout.num_layers
        assert not times.is_launched
        await b.prefill(prompt(7 * BLOCK))
        assert b.timings is not None
        assert (b.timings.computed, b.timings.sent, b.timings.reused_blocks) == (NO_LAYERS, NO_LAYERS, 7)


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
        hits, outside = again.count("prefix_cache_hits"), again.count("external_prefix_cache_hits")
        assert (hits, outside) == ((4 * BLOCK, 0) if same_worker else (0, 4 * BLOCK))
        asked = again.count("prefix_cache_queries")
        assert asked == (11 if same_worker else 7) * BLOCK
        assert again.count("external_prefix_cache_queries") == asked - hits


async def test_what_the_pool_lost_and_the_device_has_is_sent_again() -> None:
    async with bench() as b:
        tokens = prompt(3 * BLOCK)
        await b.prefill(tokens)
        b.pool.lose(*b.pool.frames)
        assert (await b.prefill(tokens))[-1] == Progress(3, 0, True)
        b.check(tokens)


async def test_a_prompt_takes_over_what_a_writer_left_while_it_computed() -> None:
    """It has computed the other's block all the same: the blocks behind it were its own."""
    async with bench() as b:
        tokens = prompt(3 * BLOCK)
        asked = Prompt(tokens, b.keys(tokens), (), Codec.RAW)
        async with aclosing(b.worker.prefill(asked, Deadline.after(LIMIT_S))) as progress:
            async with b.pool.publish(Deadline.after(LIMIT_S)) as other:
                await other.open(b.model.layout, [BlockEntries(asked.keys[1], ALL)])
                assert await anext(progress) == Progress(0, 0, False)
            assert (await anext(progress))._replace(timings=None) == Progress(3, 3 * BLOCK, True)
        b.check(tokens)


async def test_a_prompt_computes_what_it_waited_for_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block was another's, the rest its own: it would have gone on from there."""
    monkeypatch.setattr(worker, "REUSE_WAIT_S", 0.05)
    pool = WatchedPool()
    async with bench(pool=pool) as b:
        tokens = prompt(3 * BLOCK)
        async with b.pool.publish(Deadline.after(LIMIT_S)) as other:
            await other.open(b.model.layout, [BlockEntries(b.keys(tokens)[0], ALL)])
            prefilling = asyncio.create_task(b.prefill(tokens))
            await until(lambda: pool.num_fetches)
        assert await prefilling == [Progress(0, 0, False), Progress(3, 3 * BLOCK, True)]
        assert pool.num_fetches == 1, "it has claimed the block, and need not ask again"
        b.check(tokens)


async def test_layers_of_a_window_that_were_granted_and_are_not_needed_are_not_sent() -> None:
    """To go on after four blocks two blocks' windows are enough: nobody has computed those of the first two again."""
    tokens, lacking = prompt(7 * BLOCK), {(block, layer) for block in range(2) for layer in (0, 1, 3)}
    async with bench("gemma3") as first, bench("gemma3") as second:
        await first.prefill(tokens[: 4 * BLOCK])
        keys = first.keys(tokens)
        entries = [(block, layer) for block in range(4) for layer in range(4) if (block, layer) not in lacking]
        async with second.pool.publish(Deadline.after(LIMIT_S)) as copying:
            await copying.open(first.model.layout, [BlockEntries(keys[b], 1 << layer) for b, layer in entries])
            await copying.send([first.pool.frames[keys[block], layer] for block, layer in entries])
        assert (await second.prefill(tokens))[-1] == Progress(7, 3 * BLOCK, True)
        second.check(tokens, lacking)


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


async def test_what_prompts_still_need_counts_once_where_they_share_it_and_falls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with bench() as b:
        gate = Gate(b.transformer, monkeypatch)
        tokens = prompt(4 * BLOCK)
        prompts = [asyncio.create_task(b.prefill(tokens)), asyncio.create_task(b.prefill([*tokens, *prompt(BLOCK, 1)]))]
        await gate.begun(1)
        assert b.backlog.queued().num_tokens == 5 * BLOCK
        gate.let(4)  # layers, which are the first chunk
        await gate.begun(5)
        assert b.backlog.queued().num_tokens == 5 * BLOCK - CHUNK
        gate.open()
        await asyncio.gather(*prompts)
        assert b.backlog.queued().num_tokens == 0
        assert [progress.num_blocks_done for progress in await b.prefill(tokens)] == [4, 4], "nothing is left to do"
