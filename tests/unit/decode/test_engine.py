"""The engine's life: what holds after start, abort, a failed step and clean-up. No pool: nothing can be published."""

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from torch import Tensor

from shared.engine.packing import MIN_TAIL_TOKENS
from shared.errors import ContextTooLong, DeadlineExceeded, Draining, Internal, Overloaded
from shared.model.layers.batch import Batch
from shared.model.pages.kv import PagedKv
from tests.support.decoding import DecodeBench, decode_bench, ids_of, words
from tests.support.tiny import greedy_reference, tiny_model
from tests.support.waiting import until


def bench(num_pages: int = 64, **settings: Any) -> AbstractAsyncContextManager[DecodeBench]:
    return decode_bench(tiny_model("llama", num_pages), **settings)


async def test_clean_up_ends_everything_and_releases_every_page() -> None:
    async with bench(num_pages=12, max_batch=4) as b:
        requests = [b.submit(words(200, seed), 300) for seed in range(6)]
        await until(lambda: requests[0].num_generated > 5)
        await b.stop()
        assert b.model.kv.held == 0
        for request in requests:
            with pytest.raises(Draining):
                await ids_of(request)


async def test_abort_in_every_state_and_twice() -> None:
    async with bench(num_pages=12, max_batch=2) as b:
        running, tail, waiting = b.submit(words(100), 300), b.submit(words(600, 1), 5), b.submit(words(100, 2), 5)
        await until(lambda: running.num_generated > 2)
        for request in (tail, waiting, running, running):
            b.engine.abort(request)
        await until(lambda: b.model.kv.held == 0)
        assert (b.engine.num_running, b.engine.num_waiting) == (0, 0)
        assert await ids_of(b.submit(words(70, 3))) == greedy_reference("llama", words(70, 3), 8)


async def test_what_torch_raises_for_a_tail_is_that_requests_end_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench() as b:
        compute = b.model.transformer.layers

        def layers(first: int, end: int, hidden: Tensor, batch: Batch, kv: PagedKv) -> Tensor:
            if any(span.end == 77 and span.num_tokens > 1 for span in batch.spans):
                raise RuntimeError("out of memory")
            return compute(first, end, hidden, batch, kv)

        monkeypatch.setattr(b.model.transformer, "layers", layers)
        good, bad = b.submit(words(50), 40), b.submit(words(77, 1))
        with pytest.raises(Internal, match="RuntimeError"):
            await ids_of(bad)
        assert await ids_of(good) == greedy_reference("llama", words(50), 40)


async def test_what_torch_raises_for_a_batch_ends_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench() as b:
        requests = [b.submit(words(50, seed), 40) for seed in range(3)]
        await until(lambda: all(request.num_generated > 2 for request in requests))
        compute = b.model.transformer.forward

        def forward(*_args: Any) -> Tensor:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(b.model.transformer, "forward", forward)
        for request in requests:
            with pytest.raises(Internal):
                await ids_of(request)
        monkeypatch.setattr(b.model.transformer, "forward", compute)
        assert await ids_of(b.submit(words(60))) == greedy_reference("llama", words(60), 8)


async def test_limits_are_told_at_submit() -> None:
    async with bench(num_pages=4, max_waiting=1) as b:
        with pytest.raises(ContextTooLong, match="KV memory holds 256"):
            b.submit(words(250), 7)
        b.submit(words(200), 50)
        with pytest.raises(Overloaded):
            b.submit(words(10))


async def test_a_late_reader_gets_what_has_come_as_one_event() -> None:
    async with bench() as b:
        request = b.submit(words(70), 30)
        await until(lambda: request.retired)
        events = [event async for event in request.events()]
        assert len(events) == 1
        assert list(events[0].ids) == greedy_reference("llama", words(70), 30)
        assert (events[0].computed_prompt_tokens, events[0].finish_reason is not None) == (70, True)


async def test_steps_are_measured() -> None:
    async with bench() as b:
        await asyncio.gather(*(ids_of(b.submit(words(70, seed), 20)) for seed in range(4)))
        steps, outside = b.metric("decode_step_seconds_sum"), b.metric("decode_step_outside_model_seconds_total")
        assert b.metric("decode_step_seconds_count") >= 19
        assert 0 < outside < steps
        assert b.metric("decode_step_tail_tokens_total") > 0
        load = b.engine.load()
        assert load.tokens_per_s > 0
        assert load.queued.num_tokens == load.context_tokens == 0


async def test_a_deadline_ends_a_request_that_waits() -> None:
    async with bench(num_pages=4) as b:
        b.submit(words(200), 50)
        late = b.submit(words(200, 1), 50, deadline_s=0.0)
        with pytest.raises(DeadlineExceeded):
            await ids_of(late)
        b.engine.abort(late)  # as the servicer does, however a call ends
        assert b.engine.num_waiting == 0


async def test_a_load_tells_what_runs_what_waits_and_what_steps_take() -> None:
    async with bench(num_pages=12, max_batch=2) as b:
        assert b.engine.load().queued == (0, 0.0)
        running = b.submit(words(100), 300)
        await until(lambda: running.num_generated > 2)
        b.submit(words(600, 1), 5)
        b.submit(words(100, 2), 5)
        load = b.engine.load()
        assert (load.running, load.waiting) == (1, 2)
        assert load.queued.num_tokens == 700
        assert load.queued.seconds > 0
        assert load.context_tokens == len(running.tokens)
        assert MIN_TAIL_TOKENS <= load.step_tokens <= 128
        assert load.arrivals_per_s > 0
