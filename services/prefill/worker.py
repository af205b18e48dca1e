"""One prompt on a prefill worker: reserve pages, claim blocks, reuse what exists, compute and stream the rest."""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from services.prefill.backlog import Backlog, PendingPrompt
from services.prefill.claims import Claims
from services.prefill.engine import ComputeJob, PrefillEngine
from services.prefill.page_queue import PageQueue
from services.prefill.promises import Promise, Promises
from services.prefill.prompt_pages import PromptPages
from services.prefill.times import PromptTimes
from shared.deadline import Deadline
from shared.engine.batching import Ready
from shared.engine.fetch import PageFetch
from shared.engine.pool_access import PoolAccess
from shared.engine.publish import PagePublisher
from shared.engine.transfer import PageTransfer, PrefixMetrics
from shared.engine.urgency import Urgency
from shared.ids import BlockKey
from shared.kv.codec import Codec, Fidelity
from shared.kv.entries import Source
from shared.log import get_logger
from shared.metrics import Metrics
from shared.pool.nodes import Pool
from shared.telemetry.spans import current_span
from shared.tenant import NO_TENANT, Tenant
from shared.timings import PrefillTimings

log = get_logger()

REUSE_WAIT_S = 5.0
"""How long an entry that the pool promised may stay without a writer before this worker asks to write it."""

MAX_REUSE_ATTEMPTS = 3


@dataclass(frozen=True)
class Prompt:
    """A validated prefill request."""

    token_ids: Sequence[int]
    keys: Sequence[BlockKey]  # of the blocks to make available; at least one
    sources: Sequence[Source]
    codec: Codec
    priority: int = 0  # lower goes first
    pool_nodes: Sequence[str] = ()  # of this datacenter, over which everybody spreads the blocks; none: as configured
    tenant: Tenant = NO_TENANT  # pays for what the pool stores
    fidelity: Fidelity = Fidelity.LOSSLESS  # of blocks that may be used; it is in their keys
    began_at: float = field(default_factory=time.monotonic, compare=False)  # when its call was taken


class Progress(NamedTuple):
    """How far a prompt has come."""

    num_blocks_done: int  # leading blocks that need no computing any more
    computed_tokens: int  # by this worker
    finished: bool
    timings: PrefillTimings | None = None  # with the last


@dataclass(frozen=True)
class _Work:
    """What a prompt holds while it is worked on."""

    prompt: Prompt
    pool: Pool  # of this prompt's plan
    urgency: Urgency
    promise: Promise
    pages: PromptPages
    claims: Claims
    publisher: PagePublisher
    pending: PendingPrompt
    times: PromptTimes


class PrefillWorker:
    """Makes prompts' blocks available in the pool, computing each only if nobody else has it or is at it."""

    def __init__(
        self,
        pool: PoolAccess,
        transfer: PageTransfer,
        engine: PrefillEngine,
        pages: PageQueue,
        promises: Promises,
        backlog: Backlog,
        metrics: Metrics,
    ) -> None:
        """The stride of `pages` is how far computing may be ahead of sending where pages behind a window are let go."""
        self._pool = pool
        self._transfer = transfer
        self._engine = engine
        self._pages = pages
        self._promises = promises
        self._backlog = backlog
        self._computed_blocks = metrics.counter("prefill_computed_blocks", "Blocks that this worker has computed")
        self._reused_blocks = metrics.counter("prefill_reused_blocks", "Blocks of prompts found in a cache", ("tier",))
        self._prefix = PrefixMetrics(metrics)
        self._compute_s = metrics.counter("prefill_compute_seconds", "Time in steps, summed over the prompts in them")
        self._exposed_s = metrics.counter(
            "prefill_emission_exposed_seconds",
            "From the last computed layer until all is stored",
        )

    async def prefill(self, prompt: Prompt, deadline: Deadline) -> AsyncGenerator[Progress, None]:
        """Yield once when it is known what need not be computed, and once at the end, when the pool has everything."""
        pool, num_blocks = self._pool.at(prompt.pool_nodes, prompt.tenant), len(prompt.keys)
        kv, layout = self._transfer.kv, self._transfer.layout
        num_tokens = num_blocks * layout.block_tokens
        urgency = Urgency(time.monotonic(), deadline.at, prompt.priority)
        times = PromptTimes(layout.num_layers, prompt.began_at, current_span())
        promised = self._promises.num_promised(prompt.keys) * layout.block_tokens
        async with (
            self._backlog.entered(promised, num_tokens) as pending,
            self._promises.turn(prompt.keys, urgency, deadline) as promise,
        ):
            times.turn_came()
            async with self._pages.reserved(prompt.keys, num_tokens, deadline) as reservation:
                times.reserved()
                promise.keep(reservation.cached_blocks)
                pending.first = reservation.cached_blocks * layout.block_tokens
                async with pool.publish(deadline) as publication:
                    publisher = PagePublisher(
                        publication,
                        self._transfer,
                        reservation,
                        prompt.keys,
                        prompt.codec,
                        on_sent=self._engine.wake,
                        on_layer_sent=times.layer_sent,
                    )
                    claims = Claims(publication, layout, prompt.keys, publisher)
                    pages = PromptPages(kv, reservation, prompt.keys, publisher, self._pages.stride_tokens)
                    work = _Work(prompt, pool, urgency, promise, pages, claims, publisher, pending, times)
                    start = await self._reuse(work, deadline)
                    pending.first = start * layout.block_tokens
                    times.ready(start)
                    yield Progress(start, 0, finished=False)
                    computing = self._compute(work, start)
                    await _all(computing, publisher.run())
                self._report(publisher, prompt.codec, num_blocks, start)
        timings = times.timings(start, publisher.num_entries_sent)
        yield Progress(num_blocks, num_tokens - start * layout.block_tokens, finished=True, timings=timings)

    async def _reuse(self, work: _Work, deadline: Deadline) -> int:
        """Return how many leading blocks need no computing; those needed to go on from there are then in the pages."""
        prompt, claims, layout, reservation = work.prompt, work.claims, self._transfer.layout, work.pages.reservation
        num_blocks, on_device = len(prompt.keys), reservation.cached_blocks
        elsewhere = {block for source in prompt.sources for block in range(source.first, source.end)}
        wanted = [block for block in range(num_blocks) if block not in elsewhere]
        for _ in range(MAX_REUSE_ATTEMPTS):
            await claims.take(wanted)
            # What was not granted is stored, is being written by somebody else, or can be pulled.
            held = [layout.all_layers & ~mask for mask in work.publisher.outstanding]
            start = layout.longest_resume([*reservation.cached_layers, *held[on_device:]])
            work.pending.first = start * layout.block_tokens
            if start == on_device:
                break
            if start == num_blocks:
                async with deadline.scope("waiting for another worker with the same prompt"):
                    if not await claims.settled():
                        break
                wanted = []  # another writer has left some to us
                continue
            work.pages.take_for_resume(start)
            needed = {block: layout.needed_layers(block, start) for block in range(on_device, start)}
            missing = {block: layers for block, layers in needed.items() if layers}
            fetch = PageFetch(self._transfer, reservation, prompt.keys, missing, lambda: None, prompt.fidelity)
            await fetch.run(work.pool, prompt.sources, REUSE_WAIT_S, deadline)
            if not fetch.outstanding:
                break
            wanted = sorted(fetch.outstanding)  # their writer is gone: offer to be the next one
        else:
            start = on_device
        if start == on_device:
            work.pages.take_for_resume(on_device)
        claims.limit_to(work.pages.sendable(start), start)
        self._reused_blocks.labels("device").inc(on_device)
        self._reused_blocks.labels("pool").inc(start - on_device)
        self._prefix.looked_up(*(count * layout.block_tokens for count in (num_blocks, on_device, start)))
        return start

    async def _compute(self, work: _Work, start: int) -> None:
        pages, publisher, num_blocks = work.pages, work.publisher, len(work.prompt.keys)
        self._emit_all(publisher, start)  # what the device has and the pool lost
        if start < num_blocks:
            self._commit(work, start, start)
            await self._compute_from(work, start)
            self._computed_blocks.inc(num_blocks - start)
        work.times.computed()
        await work.claims.take_over(pages.sendable(start))
        self._emit_all(publisher, num_blocks)
        publisher.finish()

    async def _compute_from(self, work: _Work, start: int) -> None:
        block_tokens = self._transfer.layout.block_tokens
        first, end = start * block_tokens, len(work.prompt.keys) * block_tokens

        def on_layer(ready: Ready) -> None:
            work.times.layer_computed(ready)
            work.publisher.emit(ready)

        def on_chunk(done: int) -> None:
            work.times.chunk_computed(done * block_tokens)
            self._commit(work, start, done)

        job = ComputeJob(
            next_token=first,
            end=end,
            urgency=work.urgency,
            limit=lambda: work.pages.limit(job.next_token, end),
            token_ids=work.prompt.token_ids,
            reservation=work.pages.reservation,
            on_begin=work.pages.begin,
            on_layer=on_layer,
            on_chunk=on_chunk,
        )
        try:
            await self._engine.compute(job)
        finally:
            self._compute_s.inc(job.compute_s)

    def _emit_all(self, publisher: PagePublisher, num_blocks: int) -> None:
        for layer in range(self._transfer.layout.num_layers):
            publisher.emit(Ready(layer, 0, num_blocks))

    def _commit(self, work: _Work, start: int, end: int) -> None:
        """Let those who wait for the leading `end` blocks, and later ones, find them on the device."""
        work.pages.commit(start, end)
        work.promise.keep(end)
        work.pending.first = end * self._transfer.layout.block_tokens

    def _report(self, publisher: PagePublisher, codec: Codec, num_blocks: int, start: int) -> None:
        stored_at_s, computed_at_s = time.time(), publisher.finished_at_s
        if publisher.num_entries_sent and computed_at_s is not None:
            self._exposed_s.inc(max(0.0, stored_at_s - computed_at_s))
        log.info(
            "prompt_prefilled",
            num_blocks=num_blocks,
            reused_blocks=start,
            codec=codec.name.lower(),
            started_at_s=publisher.opened_at_s,
            num_entries_sent=publisher.num_entries_sent,
            first_entry_sent_at_s=publisher.first_sent_at_s,
            computed_at_s=computed_at_s,
            last_entry_sent_at_s=publisher.last_sent_at_s,
            stored_at_s=stored_at_s,
        )


async def _all(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Await all; when one fails, cancel and await the others, then raise its error alone."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for coroutine in coroutines:
                tasks.create_task(coroutine)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
