"""The gate between a plan and its workers: requests wait here, not in workers' queues, so that turns are fair."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from services.gateway.admission.rejection import Prediction, QueueFull, Rejected, check_slo, rows_too_many
from services.gateway.admission.rows import BatchOutlook, BatchRow
from services.gateway.admission.turn import Place, TurnRequest, place_of, row_of
from services.gateway.admission.window import DispatchWindow, UnderWay
from services.gateway.metrics import GatewayMetrics
from services.gateway.routing.plan import Plan
from shared.deadline import Deadline
from shared.ids import WorkerId
from shared.tenant import Tenant

Window = DispatchWindow["asyncio.Future[UnderWay]"]

MAX_IDLE_WINDOWS = 256
"""Windows of workers that have nothing to do are kept, for what was measured there, as long as they are so few."""


@dataclass(frozen=True, slots=True)
class GateLimits:
    """How much may be under way, and how many may wait. What waits are choices, not HTTP requests."""

    window_s: float = 0.5  # prompt work at a worker; infinite: nobody waits
    max_waiting: int = 1024
    max_waiting_of_tenant: int = 256


class TurnGate:
    """Owns the windows of all workers, and a `Turn` for each request that has passed.

    Whoever enters passes, is refused, or waits until its deadline; whoever stops waiting is forgotten at once. A
    request that finds room passes without giving up the event loop.
    """

    def __init__(
        self,
        limits: GateLimits,
        metrics: GatewayMetrics,
        row_s: Callable[[WorkerId], float] = lambda _worker: 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`row_s`: what a row adds to a step of a decode worker, as far as it is known."""
        self._limits = limits
        self._metrics = metrics
        self._row_s = row_s
        self._clock = clock
        self._windows: dict[WorkerId, Window] = {}
        self._batches: defaultdict[WorkerId, BatchOutlook] = defaultdict(BatchOutlook)
        self._waiting_of: Counter[Tenant] = Counter()  # at all workers

    @property
    def num_waiting(self) -> int:
        return self._waiting_of.total()

    def waits(self, asking: TurnRequest, passed: "Turn | None" = None) -> dict[WorkerId, float]:
        """Return the seconds that a request would wait here for others that wait, by worker; it is to be planned with.

        `passed`: it has waited, and those that wait for the same worker come after it.
        """
        if not self._waiting_of:
            return {}
        now = self._clock()
        return {
            worker: window.ahead_s(asking.tenant, asking.priority, now)
            for worker, window in self._windows.items()
            if window.queue and (passed is None or not passed.is_before(window))
        }

    async def enter(self, asking: TurnRequest, plan: Plan, deadline: Deadline) -> "Turn":
        """Wait for a turn. `plan` knows of `waits`. Raises `Rejected` and `DeadlineExceeded`."""
        place = place_of(plan)
        window = self._window(place.worker)
        now = self._clock()
        try:
            check_slo(asking.slo, self._expected(asking, plan, place, now))
            under_way = window.pass_now(asking.tenant, place.cost_s, now)
            if under_way is None:
                self._check_bounds(asking, window, now)
        except Rejected as rejected:
            self._metrics.rejected(rejected.reason)
            raise
        if under_way is not None:
            return Turn(self, asking, window, under_way, waited=False)
        under_way = await self._wait(asking, window, place, deadline)
        self._metrics.queue_s.observe(self._clock() - now)
        return Turn(self, asking, window, under_way, waited=True)

    async def _wait(self, asking: TurnRequest, window: Window, place: Place, deadline: Deadline) -> UnderWay:
        passed: asyncio.Future[UnderWay] = asyncio.get_running_loop().create_future()
        waiting = window.queue.push(asking.tenant, place.cost_s, asking.priority, passed)
        self._count(asking.tenant, 1)
        try:
            async with deadline.scope("the request waited for its turn"):
                return await asyncio.shield(passed)  # whoever hands out turns finds it as it was
        except BaseException:
            if passed.done():  # the turn came just then
                self.over(window, passed.result())
            else:
                window.queue.remove(waiting)
                self._count(asking.tenant, -1)
            raise

    def pump(self, window: Window) -> None:
        """Let everybody pass for whom there is room."""
        now = self._clock()
        while (waiting := window.next(now)) is not None:
            self._count(waiting.tenant, -1)
            waiting.item.set_result(window.start(waiting.tenant, waiting.cost_s, now))

    def prompt_done(self, window: Window, under_way: UnderWay) -> None:
        """Note a first token."""
        window.prompt_done(under_way, self._clock())
        self.pump(window)

    def over(self, window: Window, under_way: UnderWay) -> None:
        """Note that a request has ended."""
        window.ended(under_way, self._clock())
        self.pump(window)

    def sent(self, plan: Plan, output_tokens: int) -> tuple[BatchOutlook, BatchRow]:
        """Note that a plan is being carried out, for what later requests are told."""
        batch = self._batches[plan.decode.worker]
        row = row_of(plan.forecast, output_tokens, self._clock())
        batch.add(row)
        return batch, row

    def moved(self, asking: TurnRequest, window: Window, under_way: UnderWay, plan: Plan) -> tuple[Window, UnderWay]:
        """Count a request where its latest plan sends it, without another wait."""
        place = place_of(plan)
        target = self._window(place.worker)
        if target is window and under_way.is_prompt:
            return window, under_way
        moved = target.start(asking.tenant, place.cost_s, self._clock())
        self.over(window, under_way)
        return target, moved

    def _expected(self, asking: TurnRequest, plan: Plan, place: Place, now: float) -> Prediction:
        """Return what the request would get; what it does not ask for is not worked out."""
        forecast, slo = plan.forecast, asking.slo
        if slo.ttft_s is None and slo.time_per_output_token_s is None:
            return Prediction(forecast.ttft_s, 0.0, forecast.time_per_output_token_s)
        per_token_s, calmer_in_s = forecast.time_per_output_token_s, None
        if slo.time_per_output_token_s is not None:
            batch, row_s = self._batches[plan.decode.worker], self._row_s(plan.decode.worker)
            per_token_s += row_s * batch.change(now, now + forecast.ttft_s)
            too_many = rows_too_many(slo.time_per_output_token_s, per_token_s, row_s)
            calm_at = None if too_many is None else batch.falls_by(too_many, now)
            calmer_in_s = None if calm_at is None else calm_at - now
        return Prediction(forecast.ttft_s, min(place.cost_s, forecast.ttft_s), per_token_s, calmer_in_s)

    def _check_bounds(self, asking: TurnRequest, window: Window, now: float) -> None:
        """Raise `QueueFull` where one more may not wait."""
        has_too_many = self._waiting_of[asking.tenant] >= self._limits.max_waiting_of_tenant
        if not has_too_many and self.num_waiting < self._limits.max_waiting:
            return
        whose = "of this tenant " if has_too_many else ""
        raise QueueFull(f"too many requests {whose}wait already", retry_after_s=window.next_of_s(asking.tenant, now))

    def _window(self, worker: WorkerId) -> Window:
        window = self._windows.get(worker)
        if window is None:
            if len(self._windows) >= MAX_IDLE_WINDOWS:
                self._windows = {name: window for name, window in self._windows.items() if not window.is_idle}
                self._batches = defaultdict(BatchOutlook, {n: b for n, b in self._batches.items() if b.rows})
            window = self._windows[worker] = DispatchWindow(self._limits.window_s)
        return window

    def _count(self, tenant: Tenant, change: int) -> None:
        self._waiting_of[tenant] += change
        if not self._waiting_of[tenant]:
            del self._waiting_of[tenant]
        self._metrics.waiting.inc(change)


class Turn:
    """A request that has passed the gate, until the context is left."""

    def __init__(
        self, gate: TurnGate, asking: TurnRequest, window: Window, under_way: UnderWay, *, waited: bool
    ) -> None:
        self.waited = waited  # the plan may be out of date
        self._gate = gate
        self._asking = asking
        self._window = window
        self._under_way = under_way
        self._is_handed_over = False  # to a prefill worker, before which it stands
        self._row: tuple[BatchOutlook, BatchRow] | None = None

    def is_before(self, window: Window) -> bool:
        """Return whether this is the window that it has passed."""
        return window is self._window

    def sent(self, plan: Plan) -> int:
        """Note the plan that is carried out, be it another than the first. Return the priority for its workers."""
        self._window, self._under_way = self._gate.moved(self._asking, self._window, self._under_way, plan)
        self._is_handed_over = place_of(plan).worker != plan.decode.worker
        self._drop_row()
        self._row = self._gate.sent(plan, self._asking.output_tokens)
        return self._window.priority_at_worker(self._under_way, self._asking.priority)

    def prefilled(self) -> None:
        """Let others' prompts come to a prefill worker that is done with this one, though its KV still travels."""
        if self._is_handed_over:
            self.first_token()

    def first_token(self) -> None:
        """Let others' prompts come: this one is done. Idempotent."""
        if self._under_way.is_prompt:
            self._gate.prompt_done(self._window, self._under_way)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop_row()
        self._gate.over(self._window, self._under_way)

    def _drop_row(self) -> None:
        if self._row is not None:
            batch, row = self._row
            batch.remove(row)
            self._row = None
