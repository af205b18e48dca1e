"""The prefill loop: step after step through the model in the torch thread, each job told as its layers complete."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from services.prefill.scheduler import Chunk, Job, PrefillScheduler
from services.prefill.step import LayerDone, LayerNews, PrefillStep, PromptPart
from shared.engine.batching import Ready
from shared.engine.costs.steps import StepCosts, StepWork
from shared.engine.thread import WorkThread, outlast
from shared.engine.transfer import PageTransfer
from shared.engine.urgency import yielding_tokens
from shared.errors import Draining, Internal
from shared.log import get_logger
from shared.metrics import Metrics
from shared.model.layers.batch import Span
from shared.model.pages.reservation import Reservation
from shared.model.transformer import Transformer
from shared.step_profile import num_pairs

log = get_logger()

SPEED_SMOOTHING = 0.2
"""Weight of the newest step in the moving average of tokens per second."""


@dataclass(eq=False, kw_only=True)
class ComputeJob(Job):
    """A prompt's uncached tokens, whole blocks of them, and the pages that their KV goes to."""

    token_ids: Sequence[int]  # the whole prompt
    reservation: Reservation  # owned by whoever calls `compute`
    on_begin: Callable[[int, int], None] = lambda _first, _end: None  # told the tokens of a chunk before it is computed
    on_layer: Callable[[Ready], None]
    on_chunk: Callable[[int], None]  # told how many leading blocks are complete in all layers; after their `on_layer`
    outcome: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    withdrawn: bool = False
    compute_s: float = 0.0  # what the steps took that it was part of


class PrefillEngine:
    """One model on one device, and the only place that computes with it. Its life is a contract:

    - *start*: `run` serves until it is cancelled. `compute` may be called before it; the job waits for it.
    - *compute*: may be called at any time and any number of times at once. When it returns, the KV of all the job's
      tokens is in its pages, and `on_layer` has been called for each layer of each chunk, in order. Callbacks are made
      on the event loop and must return at once. Jobs are packed and ordered by `PrefillScheduler`; a job that has
      reached its `limit` is passed over; call `wake` when limits have risen.
    - *abort*: cancel the caller of `compute`. The job leaves the step in hand before its next layer; the others of that
      step go on. When `compute` has left, however it does, its pages are not touched any more, and what it said to be
      complete stays so.
    - *drain*: call `compute` no more and await those that run.
    - *clean up*: cancel `run`. It ends after the layer in hand; jobs that were not done then fail with `Draining`, as
      do later ones. No thread, page or task remains behind: the torch thread and the pages are the caller's.
    """

    def __init__(
        self,
        model: Transformer,
        thread: WorkThread,
        transfer: PageTransfer,
        chunk_tokens: int,
        metrics: Metrics,
        costs: StepCosts,
    ) -> None:
        """`thread` is the torch thread; the pages, and what moves entries out of them, are those of `transfer`.

        `costs` learns what steps take.
        """
        self._model = model
        self._thread = thread
        self._kv = transfer.kv
        self._stager = transfer.stager
        self._block_tokens = transfer.layout.block_tokens
        self._scheduler = PrefillScheduler[ComputeJob](
            chunk_tokens, yielding_tokens(chunk_tokens, transfer.layout.block_tokens)
        )
        self._costs = costs
        self._wake = asyncio.Event()
        self._in_hand: set[ComputeJob] = set()
        self._stopped = False
        self._computed = metrics.counter("prefill_computed_tokens", "Prompt tokens whose KV this worker has computed")
        self._steps = metrics.counter("prefill_steps", "Steps through the model")
        self._parts = metrics.counter("prefill_step_prompts", "Prompts in steps: by steps, how many were packed")
        self._busy_s = metrics.counter("prefill_step_seconds", "Time in steps: what the device computes")
        self._gap_s = metrics.counter("prefill_step_gap_seconds", "Time between steps, while there was work")
        self.tokens_per_s = 0.0

    @property
    def num_jobs(self) -> int:
        return len(self._scheduler)

    def wake(self) -> None:
        """Look again how far jobs may go."""
        self._wake.set()

    async def compute(self, job: ComputeJob) -> None:
        """Compute the job's tokens. Raises `Internal` when the model fails on its step, `Draining` after the end."""
        if self._stopped:
            raise Draining("the prefill engine has ended")
        self._scheduler.add(job)
        self._wake.set()
        try:
            await asyncio.shield(job.outcome)
        except asyncio.CancelledError:
            job.withdrawn = True
            if job not in self._in_hand:
                self._end(job)
            await outlast(job.outcome)
            raise

    async def run(self) -> None:
        """Compute step after step, for ever."""
        ended_s: float | None = None  # when the last step did, if there has been work since
        try:
            while True:
                self._wake.clear()
                planned_s = time.perf_counter()
                chunks = self._scheduler.next_step()
                if not chunks:
                    ended_s = None
                    await self._wake.wait()
                    continue
                work = _work_of(chunks)
                step = await self._compute_step(chunks)
                is_whole = not step.failed and not any(chunk.job.withdrawn for chunk in chunks)
                self._costs.stepped(time.perf_counter() - planned_s, work if is_whole else None)
                if ended_s is not None:
                    self._gap_s.inc(step.started_s - ended_s)
                ended_s = step.ended_s
        finally:
            self._stopped = True
            for job in list(self._scheduler.jobs):
                self._end(job, Draining("the prefill engine has ended"))

    async def _compute_step(self, chunks: Sequence[Chunk[ComputeJob]]) -> PrefillStep:
        jobs = [chunk.job for chunk in chunks]
        loop = asyncio.get_running_loop()

        last = self._model.num_layers - 1
        news = LayerNews(last, lambda done: loop.call_soon_threadsafe(self._completed, chunks, done))

        def on_left(part: int) -> None:
            loop.call_soon_threadsafe(self._end, jobs[part])

        for job, chunk in zip(jobs, chunks, strict=True):
            job.on_begin(chunk.first, chunk.end)
        step = PrefillStep(self._model, self._kv, self._stager, [_part(chunk) for chunk in chunks])
        self._in_hand.update(jobs)
        try:
            await self._thread.run(partial(step.run, news.add, on_left), step.stop)
        except RuntimeError as error:  # torch's own errors, out of memory included
            log.exception("step_failed", num_prompts=len(jobs), num_tokens=sum(c.num_tokens for c in chunks))
            for job in jobs:
                self._end(job, Internal(f"prefill failed: {type(error).__name__}"))
        else:
            self._finish(chunks, step.ended_s - step.started_s)
        finally:
            self._in_hand.clear()
        return step

    def _completed(self, chunks: Sequence[Chunk[ComputeJob]], done: Sequence[LayerDone]) -> None:
        for layer, mark, parts in done:
            for chunk in (chunks[part] for part in parts):
                job = chunk.job
                if not job.withdrawn:
                    job.on_layer(Ready(layer, chunk.first // self._block_tokens, chunk.end // self._block_tokens, mark))

    def _finish(self, chunks: Sequence[Chunk[ComputeJob]], seconds: float) -> None:
        done = [chunk for chunk in chunks if not chunk.job.withdrawn]
        self._measure(done, seconds)
        for chunk in chunks:
            job = chunk.job
            if job.withdrawn:
                self._end(job)
                continue
            job.compute_s += seconds
            job.on_chunk(chunk.end // self._block_tokens)
            if self._scheduler.finished(chunk):
                self._end(job)

    def _end(self, job: ComputeJob, error: Exception | None = None) -> None:
        self._scheduler.remove(job)
        if job.outcome.done():
            return
        if error is None:
            job.outcome.set_result(None)
        else:
            job.outcome.set_exception(error)

    def _measure(self, chunks: Sequence[Chunk[ComputeJob]], seconds: float) -> None:
        self._steps.inc()
        self._parts.inc(len(chunks))
        self._busy_s.inc(seconds)
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        self._computed.inc(num_tokens)
        if num_tokens:
            speed = num_tokens / seconds
            self.tokens_per_s += (speed - self.tokens_per_s) * (SPEED_SMOOTHING if self.tokens_per_s else 1.0)


def _work_of(chunks: Sequence[Chunk[ComputeJob]]) -> StepWork:
    return StepWork(
        sum(chunk.num_tokens for chunk in chunks), sum(num_pairs(chunk.first, chunk.end) for chunk in chunks)
    )


def _part(chunk: Chunk[ComputeJob]) -> PromptPart:
    job = chunk.job
    span = Span(job.reservation.tables, chunk.first, chunk.num_tokens)
    return PromptPart(span, job.token_ids[chunk.first : chunk.end], lambda: job.withdrawn)
