"""What a decode worker's requests hold: from the pool into pages, from pages to the pool, and nothing at the end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any
from unittest.mock import patch

import pytest

from services.decode.memory import RequestMemory
from services.decode.request import FinishReason, NewTokens, Request
from services.decode.scheduler import Rank
from services.decode.tail import Tail
from shared.deadline import Deadline
from shared.engine.loaded import LoadedModel
from shared.engine.transfer import PageTransfer
from shared.engine.urgency import Urgency
from shared.errors import ContextTooLong, DeadlineExceeded
from shared.ids import BlockKey, RequestId
from shared.kv.codec import Codec
from shared.kv.entries import BlockEntries
from shared.kv.frame import Frame, open_frame, seal
from shared.kv.layout import iter_layers
from shared.log import current_request_id
from shared.metrics import Metrics
from shared.pool.memory import MemoryPool
from tests.support.entries import entry_bytes
from tests.support.parts import access_to, generation, transfer_of
from tests.support.tiny import prompt, tiny_model
from tests.support.waiting import until

BLOCK, CHUNK = 64, 128
NUM_LAYERS = 4
TOKENS = prompt(3 * BLOCK + 5)


class Bench:
    """A worker's memory beside a pool, without anyone who computes: pages hold what tests put there."""

    def __init__(self, model: LoadedModel, transfer: PageTransfer, metrics: Metrics) -> None:
        self.model, self.pool, self.metrics = model, MemoryPool(), metrics
        self.failed: list[tuple[Request, BaseException]] = []
        self.num_changes = 0
        self.kv, self.layout = transfer.kv, transfer.layout
        self.memory = RequestMemory(
            access_to(self.pool), transfer, metrics, CHUNK, self.changed, lambda *failure: self.failed.append(failure)
        )

    def changed(self) -> None:
        self.num_changes += 1

    def request(self, tokens: list[int] = TOKENS, **changes: Any) -> Request:
        return Request(generation(self.model, tokens, **changes), Rank(0, 0), Urgency(0, 0), BLOCK)

    def reserved(self, tokens: list[int] = TOKENS, **changes: Any) -> Request:
        request = self.request(tokens, **changes)
        assert self.memory.reserve(request, 0)
        return request

    def frame(self, key: BlockKey, layer: int) -> Frame:
        payload = bytes([key[0], layer]) * (self.layout.entry_bytes(layer) // 2)
        return seal(key, layer, payload, Codec.RAW)

    async def publish(self, keys: list[BlockKey], layers: int) -> None:
        """Put layers of blocks into the pool."""
        async with self.pool.publish(Deadline.after(20)) as publication:
            await publication.open(self.layout, [BlockEntries(key, layers) for key in keys])
            await publication.send([self.frame(key, layer) for key in keys for layer in iter_layers(layers)])

    def content(self, request: Request, block: int, layer: int) -> bytes:
        return entry_bytes(self.kv.block(layer, request.held.reservation, block))

    async def open_layers(self, request: Request, num_layers: int) -> None:
        await until(lambda: self.memory.num_open_layers(request) == num_layers)

    async def outstanding(self, request: Request, num_blocks: int) -> None:
        fetch = request.held.fetch
        assert fetch is not None
        await until(lambda: len(fetch.outstanding) == num_blocks)

    def found(self) -> tuple[float | None, ...]:
        """Return the counters of tokens: asked of the device, there, asked of pools, there."""
        names = [f"{place}prefix_cache_{what}" for place in ("", "external_") for what in ("queries", "hits")]
        return tuple(self.metrics.registry.get_sample_value(f"prfaas:{name}_total") for name in names)

    def tail(self, request: Request) -> tuple[int, int]:
        tail = request.held.tail
        assert tail is not None
        return tail.start, tail.end


@asynccontextmanager
async def bench(num_pages: int = 16) -> AsyncIterator[Bench]:
    metrics, model = Metrics(), tiny_model("llama", num_pages)
    with transfer_of(model, metrics) as transfer:
        made = Bench(model, transfer, metrics)
        publishing = asyncio.create_task(made.memory.publisher.run())
        try:
            yield made
        finally:
            publishing.cancel()
            await asyncio.wait({publishing})
            await made.memory.all_returned()
        assert made.kv.held == 0, "whoever holds pages gives them back"
        assert made.pool.idle
        made.kv.check()


async def test_what_no_pool_has_is_computed_from_the_first_token() -> None:
    async with bench() as b:
        request = b.reserved()
        assert b.memory.num_open_layers(request) == NUM_LAYERS
        assert b.tail(request) == (0, len(TOKENS))
        b.memory.abandon(request)


async def test_gates_open_layer_by_layer_while_a_writer_is_at_it() -> None:
    async with bench() as b:
        request = b.reserved(num_blocks=3, wait_s=60.0)
        assert b.memory.num_open_layers(request) == 0
        for layer in range(NUM_LAYERS):
            await b.publish(request.keys, 1 << layer)
            await b.open_layers(request, layer + 1)
        assert b.tail(request) == (3 * BLOCK, len(TOKENS))
        for block, key in enumerate(request.keys):
            for layer in range(NUM_LAYERS):
                assert b.content(request, block, layer) == open_frame(b.frame(key, layer))
        b.memory.abandon(request)


async def test_the_loop_is_woken_by_gates_and_not_by_parts_of_layers() -> None:
    async with bench() as b:
        request = b.reserved(num_blocks=3, wait_s=60.0)
        await b.publish(request.keys, 0b1110)
        for number, key in enumerate(request.keys):
            assert b.num_changes == 0
            await b.publish([key], 0b0001)
            await b.outstanding(request, 2 - number)
        await until(lambda: b.num_changes == 2)  # all gates have opened at once, and the fetch has ended
        b.memory.abandon(request)


async def test_what_is_missing_is_computed_and_what_lies_before_it_is_not() -> None:
    async with bench() as b:
        request = b.request(num_blocks=3)
        await b.publish(request.keys[:1], 0b1111)
        await b.publish(request.keys[1:2], 0b0111)
        await b.publish(request.keys[2:], 0b1111)
        assert b.memory.reserve(request, 0)
        await b.open_layers(request, NUM_LAYERS)
        assert b.tail(request) == (BLOCK, len(TOKENS))
        assert request.num_pooled == 1
        b.memory.abandon(request)


async def test_when_prefill_has_failed_what_is_there_counts_and_the_rest_is_not_waited_for() -> None:
    async with bench() as b:
        request = b.request(num_blocks=3, wait_s=60.0)
        await b.publish(request.keys[:2], 0b1111)
        assert b.memory.reserve(request, 0)
        b.memory.stop_waiting(request)
        await b.open_layers(request, NUM_LAYERS)
        assert b.tail(request) == (2 * BLOCK, len(TOKENS))
        b.memory.abandon(request)


async def test_whose_blocks_are_late_computes_the_rest_and_says_so_once() -> None:
    async with bench() as b:
        request = b.request(num_blocks=3, wait_s=60.0, patience_s=0.02)
        await b.publish(request.keys[:1], 0b1111)
        assert b.memory.reserve(request, 0)
        async with aclosing(request.events()) as events:
            assert await anext(events) == NewTokens((), None, 0, rescued=True)
            await b.open_layers(request, NUM_LAYERS)
            assert b.tail(request) == (BLOCK, len(TOKENS))
            request.deliver(NewTokens((7,), FinishReason.LENGTH, 5))
            assert [event.rescued async for event in events] == [False]
        b.memory.abandon(request)


async def test_a_fetch_that_outlasts_its_request_fails_it() -> None:
    async with bench() as b:
        request = b.reserved(num_blocks=3, wait_s=60.0, deadline=Deadline.after(0.05))
        await until(lambda: b.failed)
        ((failed, error),) = b.failed
        assert failed is request
        assert isinstance(error, DeadlineExceeded)
        b.memory.abandon(request)


async def test_full_blocks_are_published_and_the_next_request_finds_them_on_the_device() -> None:
    async with bench() as b:
        request = b.reserved()
        for layer in range(NUM_LAYERS):
            for block in range(3):
                for half in b.kv.block(layer, request.held.reservation, block):
                    half.fill_(layer * 10 + block)
        b.memory.completed(request, len(TOKENS))
        await until(lambda: request.num_pooled == 3)
        assert set(b.pool.frames) == {(key, layer) for key in request.keys for layer in range(NUM_LAYERS)}
        for (key, layer), frame in b.pool.frames.items():
            assert open_frame(frame) == b.content(request, request.keys.index(key), layer)
        again = b.reserved()
        assert again.held.reservation.cached_blocks == 3
        assert b.memory.num_open_layers(again) == NUM_LAYERS
        assert b.tail(again) == (3 * BLOCK, len(TOKENS))
        for held in (request, again):
            b.memory.abandon(held)


async def test_pages_that_wait_to_be_published_go_to_who_needs_them() -> None:
    async with bench(num_pages=5) as b:
        request = b.reserved()
        b.memory.completed(request, len(TOKENS))
        request.retired = True
        b.memory.abandon(request)
        assert b.kv.held == 1  # the publisher's own
        other = b.reserved(prompt(4 * BLOCK + 3, seed=9))
        assert b.kv.held == 1
        b.memory.abandon(other)


async def test_blocks_of_generated_tokens_continue_the_prompts_chain() -> None:
    async with bench() as b:
        request = b.reserved(prompt(BLOCK - 1))
        assert request.keys == []
        request.tokens += prompt(BLOCK + 1, seed=1)
        assert b.memory.extend(request)
        b.memory.completed(request, 2 * BLOCK)
        assert request.keys == b.model.keys(request.tokens, "")
        await until(lambda: request.num_pooled == 2)
        b.memory.abandon(request)


async def test_who_gives_up_finds_its_blocks_again_in_the_pool_when_others_took_the_pages() -> None:
    async with bench(num_pages=5) as b:
        request = b.reserved()
        b.memory.completed(request, 2 * BLOCK)
        await until(lambda: request.num_pooled == 2)
        content = [b.content(request, block, 0) for block in range(2)]
        b.memory.give_up(request)
        assert request.holding is None
        await until(lambda: not b.memory.returning)
        other = b.reserved(prompt(4 * BLOCK + 3, seed=9))
        assert not b.memory.reserve(request, 0), "the other has all pages"
        for layer in range(NUM_LAYERS):
            for block in range(5):
                for half in b.kv.block(layer, other.held.reservation, block):
                    half.fill_(-1.0)
        b.memory.abandon(other)
        assert b.memory.reserve(request, 0)
        assert request.held.reservation.cached_blocks == 0
        await b.open_layers(request, NUM_LAYERS)
        assert b.tail(request) == (2 * BLOCK, len(TOKENS))
        assert [b.content(request, block, 0) for block in range(2)] == content
        b.memory.abandon(request)


async def test_pages_stay_for_as_long_as_a_fetch_or_the_torch_thread_may_touch_them() -> None:
    async with bench() as b:
        request = b.reserved(num_blocks=3, wait_s=60.0)
        holding = request.held
        b.memory.take_in_hand([holding])
        b.memory.abandon(request)
        await b.memory.all_returned()
        assert (b.memory.returning, b.kv.held) == (True, 1)
        b.memory.put_down([holding])
        assert (b.memory.returning, b.kv.held) == (False, 0)
        b.memory.abandon(request)  # twice changes nothing


async def test_what_could_never_fit_is_refused() -> None:
    async with bench(num_pages=4) as b:
        b.memory.check(4 * BLOCK)
        with pytest.raises(ContextTooLong):
            b.memory.check(4 * BLOCK + 1)


async def test_each_prompt_is_counted_once_by_where_its_kv_was() -> None:
    async with bench() as b:
        request = b.request(num_blocks=3)
        await b.publish(request.keys[:2], 0b1111)
        assert b.memory.reserve(request, 0)
        await b.open_layers(request, NUM_LAYERS)
        assert b.found() == (0, 0, 0, 0), "the pool may fail yet"
        b.memory.completed(request, len(TOKENS))
        b.memory.end_tail(request)
        assert b.found() == (len(TOKENS), 0, len(TOKENS), 2 * BLOCK)
        again = b.reserved(num_blocks=3)
        b.memory.end_tail(again)
        from_device = 3 * BLOCK
        total = 2 * len(TOKENS)
        assert b.found() == (total, from_device, total - from_device, 2 * BLOCK)
        again.tokens.append(7)  # generated: it has been pre-empted since, and its tail was computed again
        again.held.tail = Tail(0, len(TOKENS), CHUNK, 0, True)
        b.memory.end_tail(again)
        assert b.found()[0] == total
        for held in (request, again):
            b.memory.abandon(held)


async def test_a_fetch_carries_the_id_of_its_request() -> None:
    async with bench() as b:
        ids: list[RequestId | None] = []
        fetch = b.pool.fetch

        async def noting(*arguments: Any, **named: Any) -> AsyncIterator[Any]:
            ids.append(current_request_id())
            async for reply in fetch(*arguments, **named):
                yield reply

        with patch.object(b.pool, "fetch", noting):
            request = b.reserved(num_blocks=3, request_id=RequestId("mine"))
            await b.open_layers(request, NUM_LAYERS)
        assert ids == ["mine"]
        assert current_request_id() is None
        b.memory.abandon(request)
