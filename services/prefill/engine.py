"""Runs chunks through the model in the torch thread, one layer per call, and tells each job as its layers complete."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch

from services.prefill.scheduler import Chunk, Job, Scheduler
from shared.engine.publish import Ready
from shared.engine.thread import WorkThread, outlast
from shared.errors import Internal
from shared.log import get_logger
from shared.metrics import Metrics
from shared.model.batch import Batch, Span
from shared.model.paged import PagedKv, Reservation
from shared.model.transformer import Transformer

log = get_logger()

SPEED_SMOOTHING = 0.2
"""Weight of the newest chunk in the moving average of tokens per second."""


@dataclass(eq=False)
class ComputeJob(Job):
    """A prompt's uncached tokens and the pages that their KV goes to."""

    token_ids: Sequence[int]  # the whole prompt
    reservation: Reservation  # owned by whoever calls `compute`
    on_layer: Callable[[Ready], None]
    num_blocks_sent: Callable[[], int]  # leading blocks that nobody reads for sending any more
    outcome: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    withdrawn: bool = False


class PrefillEngine:
    """One model on one device.

    `run` is the only place that touches the model; it serves until cancelled. `compute` may be called at any time and
    any number of times at once, and returns when the job's KV is in its pages. When its caller is cancelled, the engine
    stops after the layer in hand; `compute` leaves only when the engine no longer touches the job's pages.
    """

    def __init__(
        self, model: Transformer, kv: PagedKv, thread: WorkThread, chunk_tokens: int, metrics: Metrics
    ) -> None:
        self._model = model
        self._kv = kv
        self._thread = thread
        self._block_tokens = kv.layout.block_tokens
        self._scheduler = Scheduler(chunk_tokens)
        self._wake = asyncio.Event()
        self._current: ComputeJob | None = None
        self._computed = metrics.counter("prefill_computed_tokens", "Prompt tokens whose KV this worker has computed")
        self.tokens_per_s = 0.0

    @property
    def num_jobs(self) -> int:
        return len(self._scheduler)

    async def compute(self, job: ComputeJob) -> None:
        """Compute the job's tokens. Raises `Internal` when the model fails on it; the engine goes on with others."""
        self._scheduler.add(job)
        self._wake.set()
        try:
            await asyncio.shield(job.outcome)
        except asyncio.CancelledError:
            job.withdrawn = True
            if self._current is not job:
                self._end(job)
            await outlast(job.outcome)
            raise

    async def run(self) -> None:
        """Compute chunk after chunk, for ever."""
        while True:
            chunk = self._scheduler.next_chunk()
            if chunk is None or not self._make_room(chunk):
                self._wake.clear()
                await self._wake.wait()
                continue
            job = self._current = cast(ComputeJob, chunk.job)
            try:
                await self._compute_chunk(job, chunk)
            except RuntimeError as error:  # torch's own errors, out of memory included
                log.exception("chunk_failed", first=chunk.first, end=chunk.end)
                self._end(job, Internal(f"prefill failed: {type(error).__name__}"))
            finally:
                self._current = None

    def wake(self) -> None:
        """Look again: a job may have room for its next chunk."""
        self._wake.set()

    def _make_room(self, chunk: Chunk) -> bool:
        """Let go of window pages that were sent and take the chunk's. Return False when sending is too far behind."""
        job = cast(ComputeJob, chunk.job)
        sent = job.num_blocks_sent() * self._block_tokens
        self._kv.slide(job.reservation, min(chunk.first, sent))
        return self._kv.cover(job.reservation, chunk.first, chunk.end)

    async def _compute_chunk(self, job: ComputeJob, chunk: Chunk) -> None:
        started = time.perf_counter()
        batch, hidden = await self._thread.run(partial(self._begin, job, chunk))
        blocks = (chunk.first // self._block_tokens, chunk.end // self._block_tokens)
        for layer in range(self._model.num_layers):
            if job.withdrawn:
                self._end(job)
                return
            hidden = await self._thread.run(partial(self._model.layer, layer, hidden, batch, self._kv))
            job.on_layer(Ready(layer, *blocks))
        self._measure(chunk.end - chunk.first, time.perf_counter() - started)
        if self._scheduler.finished_chunk(chunk):
            self._end(job)

    def _begin(self, job: ComputeJob, chunk: Chunk) -> tuple[Batch, torch.Tensor]:
        span = Span(job.reservation.tables, chunk.first, chunk.end - chunk.first)
        batch = Batch.build([span], self._kv.page_tokens, self._model.device)
        return batch, self._model.embed(torch.tensor(job.token_ids[chunk.first : chunk.end], device=self._model.device))

    def _end(self, job: ComputeJob, error: Exception | None = None) -> None:
        self._scheduler.remove(job)
        self._wake.set()
        if job.outcome.done():
            return
        if error is None:
            job.outcome.set_result(None)
        else:
            job.outcome.set_exception(error)

    def _measure(self, num_tokens: int, seconds: float) -> None:
        self._computed.inc(num_tokens)
        speed = num_tokens / seconds
        self.tokens_per_s += (speed - self.tokens_per_s) * (SPEED_SMOOTHING if self.tokens_per_s else 1.0)
