"""The decode loop: plan a step, let the torch thread run it, hand out what it brought."""

import asyncio
import itertools
import time
from collections.abc import Iterator

from services.decode.following import in_turn, leaders
from services.decode.memory import RequestMemory
from services.decode.meter import StepMeter
from services.decode.request import FinishReason, Generation, NewTokens, Request
from services.decode.scheduler import DecodeScheduler, Rank
from services.decode.settings import DecodeSettings
from services.decode.steps.ahead import StepInHand
from services.decode.steps.driver import StepDriver
from services.decode.steps.pace import StepPace
from services.decode.steps.runner import DecodeStep, PromptComputed, RequestPart, Result, StepOutcome
from services.decode.tail import Tail
from services.decode.traced import trace_phases
from shared.engine.costs.load import EngineLoad
from shared.engine.costs.steps import StepCosts, StepWork
from shared.engine.loaded import LoadedModel
from shared.engine.packing import Offer, pack
from shared.engine.pool_access import PoolAccess
from shared.engine.thread import WorkThread
from shared.engine.transfer import PageTransfer
from shared.engine.urgency import Urgency, sharing, yielding_tokens
from shared.errors import ContextTooLong, Draining, Internal, Overloaded, PrfaasError
from shared.log import get_logger
from shared.measuring.rates import RecentRate
from shared.metrics import Metrics
from shared.model.sampler.sampling import Sampled
from shared.timings import DecodeTimings

log = get_logger()


class DecodeEngine:
    """One model on one device, generating for many requests in one batch. All methods belong to the event loop.

    Life:

    - start: `run` serves until it is cancelled, and needs `publisher.run` beside it; `ready_pages.run` makes it
      quicker. Nothing is held before that.
    - generate: `submit` raises or returns a request; from then on its `events` end in a finish reason or an error, not
      later than its deadline. What they have said is never said again or taken back, whatever happens to its pages:
      a request that is pre-empted goes on with the same tokens as if it had not been.
    - abort: at any time, any number of times. The request computes nothing after the step in hand; its pages go back
      as soon as neither the torch thread, nor its fetch, nor the publisher can touch them.
    - drain: whoever stops sending requests waits for the calls that are open; the engine serves on meanwhile. When the
      last request has ended and its blocks are published, no reservation is held.
    - clean up: cancel `run` and `publisher.run`. What was still there ends in `Draining`. When both have returned the
      torch thread is idle, every page is released, and nothing that was not published will be.
    """

    def __init__(
        self,
        settings: DecodeSettings,
        model: LoadedModel,
        thread: WorkThread,
        pool: PoolAccess,
        transfer: PageTransfer,
        metrics: Metrics,
        costs: StepCosts,
    ) -> None:
        """`costs` learns what steps take."""
        self._settings = settings
        self._model = model
        self._thread = thread
        self._wake = asyncio.Event()
        self._memory = RequestMemory(pool, transfer, metrics, settings.chunk_tokens, self._wake.set, self._fail)
        self._scheduler: DecodeScheduler[Request] = DecodeScheduler(self._memory, settings.max_batch)
        self._pace = StepPace(
            settings.chunk_tokens,
            settings.inter_token_s,
            yielding_tokens=yielding_tokens(settings.chunk_tokens, model.layout.block_tokens),
        )
        self._steps = StepDriver(model.transformer, model.kv, thread, self._memory, self._hand_out)
        self._num_layers = model.layout.num_layers
        self._meter = StepMeter(metrics)
        self._costs = costs
        self._ranks = itertools.count()
        self._arrivals = RecentRate(time.monotonic)
        self.publisher = self._memory.publisher
        self.ready_pages = self._memory.ready_pages

    @property
    def num_running(self) -> int:
        return self._scheduler.num_holding

    @property
    def num_waiting(self) -> int:
        return len(self._scheduler.waiting)

    def load(self) -> EngineLoad:
        """Return what gateways are told."""
        costs, running = self._costs, self._scheduler.running
        step_tokens = self._pace.tail_tokens(len(running), max(1, len(self._scheduler.tails)))
        context_tokens = sum(len(request.tokens) for request in running)
        beside = StepWork(num_rows=len(running), context_tokens=context_tokens)
        queued = costs.queued(self._prompts_left(), step_tokens, beside)
        return EngineLoad(
            running=len(running),  # who gets a token a step: tails wait for entries, or for their first
            waiting=self.num_waiting + len(self._scheduler.tails),
            tokens_per_s=self._meter.tokens_per_s,
            queued=queued,
            context_tokens=context_tokens,
            step_tokens=step_tokens,
            arrivals_per_s=self._arrivals.per_s,
            hand_over_bytes_per_s=self._memory.landing_bytes_per_s,
            max_batch=self._settings.max_batch,
            answer_tokens=self._meter.answer_tokens.value,
        )

    def _prompts_left(self) -> Iterator[tuple[int, int]]:
        """Yield the tokens that each prompt has still to compute here; none of what a pool has, or will have."""
        for request in self._scheduler.tails:
            tail = _tail(request)
            yield tail.first, tail.end
        for request in self._scheduler.waiting:
            num_tokens = len(request.tokens)
            pooled = request.num_pooled * self._model.layout.block_tokens
            yield min(pooled, request.num_reusable, num_tokens - 1), num_tokens

    def submit(self, generation: Generation) -> Request:
        """Queue a request. Raises `ContextTooLong` when it could never fit, `Overloaded` when too many wait."""
        num_tokens = len(generation.token_ids) + generation.sampling.max_tokens
        if num_tokens > self._model.max_model_len:
            raise ContextTooLong(
                f"prompt and max_tokens make {num_tokens} tokens, the context has {self._model.max_model_len}"
            )
        self._memory.check(num_tokens)
        if self.num_waiting >= self._settings.max_waiting:
            raise Overloaded(f"{self.num_waiting} requests are waiting already")
        urgency = Urgency(time.monotonic(), generation.deadline.at, generation.priority)
        rank = Rank(generation.priority, next(self._ranks))
        request = Request(generation, rank, urgency, self._model.layout.block_tokens)
        self._scheduler.add(request)
        self._arrivals.add()
        self._wake.set()
        return request

    def abort(self, request: Request) -> None:
        """End a request, whatever its state; nothing happens when it has ended already."""
        self._retire(request)

    def prefill_failed(self, request: Request) -> None:
        """Stop waiting for a request's blocks that are not there yet: nobody writes them, so they are computed."""
        self._memory.stop_waiting(request)

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            if self._model.transformer.can_capture:
                await self._thread.run(self._capture, may_take_long=True)
            while True:
                self._wake.clear()
                await self._turn()
        finally:
            await self._clean_up()

    def _capture(self) -> None:
        model = self._model
        model.transformer.capture_steps(model.kv, model.max_model_len, self._settings.max_batch)

    async def _turn(self) -> None:
        """Plan a step and have it run; without one, wait."""
        await self._steps.until_nearly_read()
        started = time.perf_counter()
        step = self._plan()
        is_busy = bool(step) or self._steps.under_way is not None
        self.publisher.set_busy(is_busy)
        if is_busy:
            # Who waits for a pre-emption waits for nothing to be under way.
            await self._steps.take(step, started, may_launch=not self._scheduler.held_back)
        else:
            await self._wake.wait()

    def _plan(self) -> DecodeStep:
        running = self._scheduler.schedule(may_preempt=self._steps.under_way is None)
        batch = [request for request in running if not request.is_ending]
        ready = [offer for request in self._ready_tails() if (offer := self._offer(request)) is not None]
        offers = sharing(ready, lambda offer: offer.request.urgency)
        num_tokens = self._pace.room([o.request.urgency for o in offers], [request.urgency for request in batch])
        packed = pack(offers, num_tokens, self._num_layers)
        step = DecodeStep.of(packed, batch)
        for part in step.rows:
            self._memory.cover_tail(part.request, part.num_tokens)
        for gated in step.passes:
            for part in gated.parts:
                self._memory.cover_tail(part.request, part.tail.chunk_end - part.tail.first)
        return step

    def _ready_tails(self) -> list[Request]:
        """Return in turn the tails that wait for no other."""
        turns = self._scheduler.turns()
        waits_for = leaders([(request, self._memory.tail_blocks(request)) for request in turns])
        for request in turns:
            request.waits_for = waits_for.get(request)
        return in_turn(turns, waits_for)

    def _offer(self, request: Request) -> Offer[Request] | None:
        tail = _tail(request)
        if request.num_coming or (tail.begins_chunk and self._is_under_way(request)):
            return None  # its last row is under way, or rows that see what its windows would slide past
        open_layers = self._memory.num_open_layers(request)
        tail = _tail(request)
        if open_layers <= tail.next_layer:
            return None
        if request.gate_opened_at_s is None:
            request.gate_opened_at_s = time.time()
        return Offer(request, tail.chunk_end - tail.first, tail.next_layer, open_layers)

    def _is_under_way(self, request: Request) -> bool:
        under_way = self._steps.under_way
        return under_way is not None and under_way.has_rows_of(request)

    def _hand_out(self, hand: StepInHand, outcome: StepOutcome, seconds: float) -> None:
        """Give a step's requests what it brought; tokens travel while the next step computes."""
        for part, tail, first in hand.tails:
            last = tail.first if hand.flight is None else first + part.num_tokens
            self._scored(part.request, outcome)
            self._tail_advanced(part, tail, first, last, outcome.results[part.request])
        for part in hand.step.batch:
            self._generated(part.request, outcome.results[part.request])
        self._pace.cost.measured(len(hand.step.batch), hand.work.num_tokens, outcome.model_s)
        self._costs.stepped(seconds, hand.work)
        self._meter.stepped(hand.step, hand.work.num_tokens, outcome, seconds)

    def _scored(self, request: Request, outcome: StepOutcome) -> None:
        """Tell how likely a prompt's next tokens were; what follows them fails or comes later."""
        scores = outcome.scores.get(request, ())
        if scores and not request.retired and not isinstance(outcome.results[request], Exception):
            request.num_scored += len(scores)
            self._meter.scored.inc(len(scores))
            request.deliver(NewTokens((), None, 0, prompt_logprobs=tuple(scores)))

    def _tail_advanced(self, part: RequestPart, tail: Tail, first: int, last: int, result: Result) -> None:
        """Take note of a tail's tokens `[first, last)`, which are through all layers now."""
        request = part.request
        if request.retired:
            return
        if isinstance(result, Exception):
            self._fail(request, result)
            return
        if last > first:
            self._count_computed(request, last - first)
            if tail.is_chunk_end(last) or result is not None:
                self._memory.completed(request, last)
                self._share(request)
        if result is not None:
            self._end_tail(request, tail, result)

    def _share(self, request: Request) -> None:
        """Let those who wait for a request hold what it has computed, before its windows slide past it."""
        for other in [other for other in self._scheduler.tails if other.waits_for is request]:
            if not self._memory.renew(other):
                self._scheduler.put_back(other)

    def _count_computed(self, request: Request, num_tokens: int) -> None:
        new = min(num_tokens, request.num_prompt_tokens - request.num_computed) if not request.num_generated else 0
        request.num_computed += new
        self._meter.computed_prompt.inc(new)
        self._meter.recomputed.inc(num_tokens - new)

    def _end_tail(self, request: Request, tail: Tail, result: Sampled | PromptComputed) -> None:
        self._memory.end_tail(request)
        with request.generation.bound():
            log.info(
                "tail_computed",
                num_prompt_tokens=request.num_prompt_tokens,
                num_generated=request.num_generated,  # not 0: it was pre-empted
                computed_tokens=tail.end - tail.start,
                gate_opened_at_s=request.gate_opened_at_s,
                computed_at_s=time.time(),
            )
        timings = None if request.num_generated else request.timings(tail.end - tail.start)
        if isinstance(result, PromptComputed):
            request.deliver(NewTokens((), FinishReason.LENGTH, request.num_computed, timings=timings))
            self._retire(request)
            return
        self._scheduler.join(request)
        self._append(request, result, timings)

    def _generated(self, request: Request, result: Result) -> None:
        if request.retired:
            return
        if isinstance(result, Exception):
            self._fail(request, result)
            return
        assert isinstance(result, Sampled), "a running request gets a token a step"
        if len(request.tokens) % self._model.layout.block_tokens == 0:
            self._memory.completed(request, len(request.tokens))
        self._append(request, result)

    def _append(self, request: Request, sampled: Sampled, timings: DecodeTimings | None = None) -> None:
        computed = 0 if request.num_generated else request.num_computed
        request.tokens.append(sampled.token)
        self._meter.generated.inc()
        reason = _finish_reason(request, sampled)
        logprobs = () if sampled.logprobs is None else (sampled.logprobs,)
        request.deliver(NewTokens((sampled.token,), reason, computed, logprobs, timings=timings))
        if reason is not None:
            self._retire(request)

    def _fail(self, request: Request, error: BaseException) -> None:
        if request.retired:
            return
        if not isinstance(error, PrfaasError):
            with request.generation.bound():
                log.error("generation_failed", exc_info=error)
            error = Internal(f"decode failed: {type(error).__name__}")
        request.deliver(error)
        self._retire(request)

    def _retire(self, request: Request) -> None:
        if not request.retired:
            trace_phases(request)
            if request.num_generated:
                self._meter.answer_tokens.add(request.num_generated)
        request.retired = True
        self._scheduler.remove(request)
        self._memory.abandon(request)
        self._wake.set()

    async def _clean_up(self) -> None:
        await self._steps.clean_up()
        for request in [*self._scheduler.waiting, *self._scheduler.tails, *self._scheduler.running]:
            self._fail(request, Draining("this worker is stopping"))
        await self._memory.all_returned()


def _tail(request: Request) -> Tail:
    tail = request.held.tail
    assert tail is not None, "a request in tails has a tail"
    return tail


def _finish_reason(request: Request, sampled: Sampled) -> FinishReason | None:
    sampling = request.generation.sampling
    if sampled.completes or sampled.token in sampling.stop_token_ids:
        return FinishReason.STOP
    return FinishReason.LENGTH if request.num_generated >= sampling.max_tokens else None
