"""One prompt on a prefill worker: reserve pages, claim blocks, reuse what exists, compute and stream the rest."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from services.prefill.engine import ComputeJob, PrefillEngine
from shared.deadline import Deadline
from shared.engine.fetch import FetchContext, PageFetch
from shared.engine.pages import PageQueue
from shared.engine.publish import PagePublisher, Ready
from shared.ids import BlockKey
from shared.kv.codec import Codec
from shared.kv.entries import BlockEntries, Source
from shared.log import get_logger
from shared.metrics import Metrics
from shared.model.paged import Reservation
from shared.rpc.pool import Publication

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


class Progress(NamedTuple):
    num_blocks_done: int
    computed_tokens: int
    finished: bool


class PrefillWorker:
    """Makes prompts' blocks available in the pool, computing each only if nobody else has it or is at it."""

    def __init__(
        self, context: FetchContext, engine: PrefillEngine, pages: PageQueue, stride_tokens: int, metrics: Metrics
    ) -> None:
        """`stride_tokens`: how far computing may be ahead of sending, window pages being kept for both."""
        self._context = context
        self._stride_tokens = stride_tokens
        self._engine = engine
        self._pages = pages
        self._computed_blocks = metrics.counter("prefill_computed_blocks", "Blocks that this worker has computed")
        self._reused_blocks = metrics.counter("prefill_reused_blocks", "Blocks of prompts found in a cache", ("tier",))
        self._exposed = metrics.counter("prefill_emission_exposed_seconds", "Sending time not hidden behind computing")

    async def prefill(self, prompt: Prompt, deadline: Deadline) -> AsyncGenerator[Progress, None]:
        """Yield once when it is known what need not be computed, and once at the end, when the pool has everything."""
        layout = self._context.layout
        num_tokens = len(prompt.keys) * layout.block_tokens
        async with (
            self._pages.reserved(prompt.keys, num_tokens, deadline, self._stride_tokens) as reservation,
            self._context.pool.publish(deadline) as publication,
        ):
            publisher = PagePublisher(
                publication,
                self._context.kv,
                reservation,
                prompt.keys,
                self._context.copier,
                prompt.codec,
                on_sent=self._engine.wake,
            )
            start = await self._reuse(prompt, reservation, publication, publisher, deadline)
            yield Progress(start, 0, finished=False)
            await _all(self._compute(prompt, reservation, publisher, start), publisher.run())
            self._commit(prompt, reservation, start)
        self._report(publisher, len(prompt.keys), start)
        yield Progress(len(prompt.keys), num_tokens - start * layout.block_tokens, finished=True)

    async def _reuse(
        self,
        prompt: Prompt,
        reservation: Reservation,
        publication: Publication,
        publisher: PagePublisher,
        deadline: Deadline,
    ) -> int:
        """Return how many leading blocks need no computing; those needed to go on from there are then in the pages."""
        layout, kv, keys = self._context.layout, self._context.kv, prompt.keys
        num_blocks, on_device = len(keys), reservation.cached_blocks
        elsewhere = {block for source in prompt.sources for block in range(source.first, source.end)}
        claims = [block for block in range(num_blocks) if block not in elsewhere]
        for _ in range(MAX_REUSE_ATTEMPTS):
            await self._claim(publication, publisher, keys, claims)
            # What was not granted is stored, is being written by somebody else, or can be pulled.
            held = [layout.all_layers & ~publisher.to_send[block] for block in range(num_blocks)]
            start = layout.longest_resume([*reservation.cached_layers, *held[on_device:]])
            if start in (on_device, num_blocks):
                break
            kv.rewind(reservation, on_device * layout.block_tokens)
            covered = kv.cover(reservation, start * layout.block_tokens, start * layout.block_tokens)
            assert covered, "a window is within every guarantee"
            needed = {block: layout.needed_layers(block, start) for block in range(on_device, start)}
            wanted = {block: layers for block, layers in needed.items() if layers}
            fetch = PageFetch(self._context, reservation, keys, wanted, on_landed=lambda: None)
            await fetch.run(prompt.sources, REUSE_WAIT_S, deadline)
            if not fetch.outstanding:
                break
            claims = sorted(fetch.outstanding)  # their writer is gone: offer to be the next one
        else:
            start = on_device
        if start == on_device:
            kv.rewind(reservation, on_device * layout.block_tokens)
        for block in range(start):  # of what was granted there, only what the device holds can be sent
            publisher.to_send[block] &= reservation.cached_layers[block] if block < on_device else 0
        self._reused_blocks.labels("device").inc(on_device)
        self._reused_blocks.labels("pool").inc(start - on_device)
        return start

    async def _claim(
        self, publication: Publication, publisher: PagePublisher, keys: Sequence[BlockKey], blocks: Sequence[int]
    ) -> None:
        if not blocks:
            return
        layout = self._context.layout
        claims = [BlockEntries(keys[block], layout.all_layers) for block in blocks]
        if blocks[0] > 0:
            claims.insert(0, BlockEntries(keys[blocks[0] - 1], 0))  # tells the pool what the first one follows
        grant = await publication.open(layout, claims)
        for block, layers in zip(blocks, grant.granted[-len(blocks) :], strict=True):
            publisher.to_send[block] |= layers

    async def _compute(self, prompt: Prompt, reservation: Reservation, publisher: PagePublisher, start: int) -> None:
        layout, num_blocks = self._context.layout, len(prompt.keys)
        for layer in range(layout.num_layers):  # what the device has and the pool lost
            publisher.emit(Ready(layer, 0, start))
        if start < num_blocks:
            first, end = start * layout.block_tokens, num_blocks * layout.block_tokens
            job = ComputeJob(
                first, end, prompt.token_ids, reservation, publisher.emit, lambda: publisher.num_blocks_sent
            )
            await self._engine.compute(job)
            self._computed_blocks.inc(num_blocks - start)
        publisher.finish()

    def _report(self, publisher: PagePublisher, num_blocks: int, start: int) -> None:
        self._exposed.inc(publisher.exposed_s)
        log.info(
            "prompt_prefilled",
            num_blocks=num_blocks,
            reused_blocks=start,
            num_entries_sent=publisher.num_entries_sent,
            first_entry_sent_at_s=publisher.first_sent_at_s,
            computed_at_s=publisher.finished_at_s,
            last_entry_sent_at_s=publisher.last_sent_at_s,
        )

    def _commit(self, prompt: Prompt, reservation: Reservation, start: int) -> None:
        """Make what is in the pages reusable: cached, fetched (window layers only near `start`) and computed blocks."""
        layout, num_blocks = self._context.layout, len(prompt.keys)
        layers = list(reservation.cached_layers)
        if start < num_blocks:
            layers += [layout.needed_layers(block, start) for block in range(len(layers), start)]
            layers += [layout.all_layers] * (num_blocks - start)
        self._context.kv.commit(reservation, len(layers), prompt.keys, layers)


async def _all(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Await all; when one fails, cancel and await the others, then raise its error alone."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for coroutine in coroutines:
                tasks.create_task(coroutine)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
