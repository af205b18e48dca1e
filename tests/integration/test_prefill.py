"""One prefill worker under many prompts: packed, shared, withdrawn and held back, with the tokens of one process."""

import asyncio
import time
from typing import Any

import pytest
from torch import Tensor

import shared.engine.publish as publish
from shared.engine.batching import Ready
from shared.model.layers.batch import Batch
from shared.model.pages.kv import PagedKv
from tests.support.engines import TwoDatacenters, two_datacenters
from tests.support.gate import Gate
from tests.support.sending import send_slowly, send_when
from tests.support.tiny import MODELS, greedy_reference, prompt
from tests.support.waiting import until

BLOCK = 64
NUM_LAYERS = 4


def slow_layers(dcs: TwoDatacenters, monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[list[int]]:
    """Let each layer of prefill take longer; return the list of steps, each the sizes of its spans at layer 0."""
    assert dcs.prefill.model is not None
    transformer, steps = dcs.prefill.model.transformer, list[list[int]]()
    compute = transformer.layer

    def layer(index: int, hidden: Tensor, batch: Batch, kv: PagedKv, kv_only: bool) -> Tensor:
        if index == 0:
            steps.append([span.num_tokens for span in batch.spans])
        time.sleep(seconds)
        return compute(index, hidden, batch, kv, kv_only)

    monkeypatch.setattr(transformer, "layer", layer)
    return steps


async def tokens_of(dcs: TwoDatacenters, tokens: list[int]) -> tuple[list[int], int]:
    """Decode from what the pools have, computing only the prompt's end; return ids and how much decode computed."""
    result = await dcs.generate(tokens, prefill=False, wait_ms=0)
    return result.ids, result.decode_computed


@pytest.mark.parametrize("name", MODELS)
async def test_short_prompts_are_packed_and_do_not_mix(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_datacenters(name, chunk_tokens=512, num_pages=1024) as dcs:
        assert dcs.prefill.model is not None
        gate = Gate(dcs.prefill.model.transformer, monkeypatch)
        prompts = [prompt(66 + 40 * i, seed=i) for i in range(8)]
        tasks = [asyncio.create_task(dcs.prefill_only(p)) for p in prompts]
        await until(lambda: dcs.prefill.metric("num_requests_running") == len(prompts))
        gate.open()
        await asyncio.gather(*tasks)
        assert max(len(step) for step in gate.steps) > 2
        assert all(sum(step) <= 512 for step in gate.steps)
        assert dcs.prefill.metric("prefill_steps_total") == len(gate.steps) < len(prompts)
        for tokens in prompts:
            ids, computed = await tokens_of(dcs, tokens)
            assert ids == greedy_reference(name, tokens, 8)
            assert computed == (len(tokens) - 1) % BLOCK + 1, "all full blocks came from the pool"
        await dcs.assert_idle()


async def test_one_of_a_packed_step_is_withdrawn_and_the_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_datacenters("llama", chunk_tokens=512) as dcs:
        assert dcs.prefill.model is not None
        first, *packed = prompts = [prompt(130, seed=i) for i in range(4)]
        gate = Gate(dcs.prefill.model.transformer, monkeypatch)
        tasks = [asyncio.create_task(dcs.prefill_only(first))]
        await gate.begun(1)
        tasks += [asyncio.create_task(dcs.prefill_only(p)) for p in packed]
        await until(lambda: dcs.prefill.metric("num_requests_running") == 4)
        gate.let(NUM_LAYERS)
        await gate.begun(NUM_LAYERS + 1)
        assert len(gate.steps[1]) == 3
        tasks[2].cancel()
        for _ in range(20):  # enough for the worker to hear of it: a standstill of this process is one of them
            await asyncio.sleep(0.01)
        gate.open()
        await asyncio.wait(tasks)
        assert tasks[2].cancelled()
        assert dcs.prefill.metric("prefill_computed_tokens_total") == 3 * 2 * BLOCK
        monkeypatch.undo()
        for i in (0, 1, 3):
            assert (await tokens_of(dcs, prompts[i]))[0] == greedy_reference("llama", prompts[i], 8)
        await dcs.assert_idle()


@pytest.mark.parametrize("name", MODELS)
async def test_a_prefix_that_waiting_prompts_share_is_computed_once_and_not_fetched(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_datacenters(name, chunk_tokens=256, num_pages=512) as dcs:
        assert dcs.prefill.model is not None
        gate = Gate(dcs.prefill.model.transformer, monkeypatch)
        shared = prompt(640)
        long = shared + prompt(1281, seed=9)
        prompts = [shared + prompt(65 + 64 * i, seed=i + 1) for i in range(3)]
        tasks = [asyncio.create_task(dcs.prefill_only(long))]
        await gate.begun(1)
        tasks += [asyncio.create_task(dcs.prefill_only(p, priority=-1)) for p in prompts]
        await until(lambda: dcs.prefill.metric("num_requests_waiting") == 3)
        gate.let(3 * NUM_LAYERS)  # the shared blocks are computed in three steps
        await until(lambda: dcs.prefill.metric("num_requests_running") == 4)
        gate.open()
        await asyncio.gather(*tasks)
        own = sum((len(p) - 1) // BLOCK - 10 for p in [long, *prompts])
        assert dcs.prefill.metric("prefill_computed_tokens_total") == (10 + own) * BLOCK
        device, pool = (dcs.prefill.metric("prefill_reused_blocks_total", tier=tier) for tier in ("device", "pool"))
        assert device + pool == 3 * 10
        if name == "llama":  # of Gemma's layers with windows the device may have let go what the pool has by then
            assert (pool, dcs.prefill.metric("fetched_entries_total")) == (0, 0)
            assert gate.steps[-1] == [256], "the others waited for what they do not share"  # Gemma's fetch meanwhile
        monkeypatch.undo()
        for tokens in [long, *prompts]:
            assert await tokens_of(dcs, tokens) == (greedy_reference(name, tokens, 8), (len(tokens) - 1) % BLOCK + 1)
        await dcs.assert_idle()


async def test_who_waited_for_a_prefix_finishes_it_when_its_prompt_is_withdrawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two_datacenters("llama", chunk_tokens=128) as dcs:
        steps = slow_layers(dcs, monkeypatch, 0.02)
        shared = prompt(640)
        first = asyncio.create_task(dcs.prefill_only(shared + prompt(65, seed=1)))
        await until(lambda: steps)
        tokens = shared + prompt(65, seed=2)
        second = asyncio.create_task(dcs.prefill_only(tokens))
        await until(lambda: dcs.prefill.metric("num_requests_waiting") == 1)
        await until(lambda: len(steps) == 3)
        first.cancel()
        assert 0 < await second < 704, "what the first had done was not done again"
        monkeypatch.undo()
        assert await tokens_of(dcs, tokens) == (greedy_reference("llama", tokens, 8), 1)
        await dcs.assert_idle()


async def test_what_a_withdrawn_prompt_computed_and_did_not_send_is_sent_by_those_who_use_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first prompt's sending hangs; the second takes the blocks from the device and finds their writer gone."""
    async with two_datacenters("llama", chunk_tokens=256) as dcs:
        slow_layers(dcs, monkeypatch, 0.05)
        shared = prompt(256)
        pool = dcs.pool_east.pool
        assert pool is not None
        on_publish, leases = pool.servicer._publishing._on_message, list[Any]()

        async def hang_the_first(message: Any, lease: Any, context: Any) -> None:
            if isinstance(message, list) or message.HasField("placed"):
                leases.append(lease)
                if lease is leases[0]:
                    await asyncio.sleep(30)
            await on_publish(message, lease, context)

        monkeypatch.setattr(pool.servicer._publishing, "_on_message", hang_the_first)
        first = asyncio.create_task(dcs.prefill_only(shared + prompt(1025, seed=1)))
        await until(lambda: leases)
        tokens = shared + prompt(257, seed=2)
        second = asyncio.create_task(dcs.prefill_only(tokens))
        await until(lambda: dcs.prefill.metric("prefill_reused_blocks_total", tier="device") == 4)
        first.cancel()
        assert await second == 256
        assert await tokens_of(dcs, tokens) == (greedy_reference("llama", tokens, 8), 1)
        await dcs.assert_idle()


@pytest.mark.parametrize("name", MODELS)
async def test_a_slow_pool_holds_back_a_prompt_that_is_too_far_ahead_and_corrupts_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_datacenters(name, chunk_tokens=128) as dcs:
        assert dcs.prefill.model is not None
        entry = dcs.prefill.model.layout.entry_bytes(0)
        step = 2 * NUM_LAYERS * entry
        monkeypatch.setattr(publish, "MAX_BACKLOG_BYTES", step)
        most = 0
        emit = publish.PagePublisher.emit

        def watched(self: publish.PagePublisher, ready: Ready) -> None:
            nonlocal most
            emit(self, ready)
            most = max(most, self.backlog_bytes)

        monkeypatch.setattr(publish.PagePublisher, "emit", watched)
        send_when(monkeypatch, lambda: most > step)
        tokens = prompt(1281)
        assert await dcs.prefill_only(tokens) == 1280
        assert step < most <= 2 * step, "the limit and one step beyond it"
        monkeypatch.undo()
        assert await tokens_of(dcs, tokens) == (greedy_reference(name, tokens, 8), 1)
        await dcs.assert_idle()


async def test_a_prompt_of_higher_priority_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_datacenters("llama", chunk_tokens=128) as dcs:
        steps = slow_layers(dcs, monkeypatch, 0.02)
        order: list[str] = []

        async def one(name: str, tokens: list[int], priority: int) -> None:
            await dcs.prefill_only(tokens, priority=priority)
            order.append(name)

        tasks = [asyncio.create_task(one("long", prompt(1025), 1))]
        await until(lambda: steps)
        tasks += [
            asyncio.create_task(one("usual", prompt(257, seed=1), 0)),
            asyncio.create_task(one("urgent", prompt(257, seed=2), -1)),
        ]
        await asyncio.gather(*tasks)
        assert order == ["urgent", "usual", "long"]
        await dcs.assert_idle()


async def test_time_computing_and_time_sending_that_was_not_hidden_are_exported() -> None:
    async with two_datacenters("llama") as dcs:
        tokens = prompt(1025)
        await dcs.prefill_only(tokens)
        computing, exposed = (
            dcs.prefill.metric(f"prefill_{name}_seconds_total") for name in ("compute", "emission_exposed")
        )
        assert 0 < exposed < computing + exposed
        await dcs.prefill_only(tokens)
        assert dcs.prefill.metric("prefill_emission_exposed_seconds_total") == exposed, "there was nothing to send"


async def test_window_layers_take_pages_for_the_window_and_not_for_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty blocks in four page groups, in little more than half of the pages that makes; sending is slow, too."""
    async with two_datacenters("gemma3", chunk_tokens=128, num_pages=64) as dcs:
        send_slowly(monkeypatch, 0.005)
        tokens = prompt(1921)
        assert await dcs.prefill_only(tokens) == 1920
        await dcs.assert_idle()
        ids, computed = await tokens_of(dcs, tokens)
        assert (ids, computed) == (greedy_reference("gemma3", tokens, 8), 1)
        assert dcs.pool_east.metric("entries_published_total") == 30 * NUM_LAYERS
        await dcs.assert_idle()
