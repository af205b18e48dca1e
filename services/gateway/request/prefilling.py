"""The prefill half of an attempt: a worker's call, and when that worker is lost, the next one's."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from services.gateway.cluster.assigned import Assignment, PromptWork
from services.gateway.cluster.promises import PrefillPromise, PrefillPromises
from services.gateway.cluster.registry import Registry
from services.gateway.cluster.workers import Member
from services.gateway.metrics import GatewayMetrics
from services.gateway.request.noted import site_of
from services.gateway.request.usage import PromptUsage
from services.gateway.routing.plan import Plan
from services.gateway.timeline.record import PrefillNote, WorkerSite
from services.gateway.timeline.traced import traced_prefill
from shared.deadline import Deadline
from shared.errors import PrfaasError, Unavailable
from shared.ids import BlockKey
from shared.log import get_logger
from shared.workers.prefill import PrefillClient
from shared.workers.request import PromptOrder

log = get_logger()

MAX_WORKERS = 3
"""Prefill workers that one plan may be tried on."""

NoteArrival = Callable[[Sequence[BlockKey], Sequence[str]], None]
"""Told the keys of a prefix and the pool nodes that have it now: see `cluster.arrivals.Arrivals.note`."""


@dataclass(frozen=True, slots=True)
class PrefillCalls:
    """What all requests share for calling prefill workers."""

    client: PrefillClient
    registry: Registry
    promises: PrefillPromises
    note_arrival: NoteArrival
    metrics: GatewayMetrics


class Prefilling:
    """Has the blocks of a plan made. A worker that takes over finds in the pool what the lost one has published."""

    def __init__(
        self,
        calls: PrefillCalls,
        plan: Plan,
        order: PromptOrder,
        keys: Sequence[BlockKey],
        usage: PromptUsage,
        deadline: Deadline,
        note_call: Callable[[WorkerSite], PrefillNote] = PrefillNote,
    ) -> None:
        """`keys` are those of the plan's blocks. `note_call` returns what keeps the times of a worker's call."""
        self.over = asyncio.Event()  # no more blocks will come, whichever way it ended
        self._calls = calls
        self._nodes = plan.prefill_nodes
        self._order = order
        self._keys = keys
        self._usage = usage
        self._deadline = deadline
        self._note_call = note_call
        self._workers = () if plan.prefill is None else (plan.prefill, *plan.prefill_spares)[:MAX_WORKERS]
        self._work = PromptWork(plan.forecast.prefill_s, plan.forecast.prefill_tokens)
        self._promise: PrefillPromise | None = None
        self._assignment: Assignment | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, tell_failure: Callable[[], Awaitable[None]], note_end: Callable[[], None]) -> None:
        """Open the first worker's call, if the plan has one. `tell_failure` is called when no worker finishes, and
        `note_end` when no call is open any more, if one was.

        Promise and load count at once: plans may follow any await.
        """
        if not self._workers:
            self.over.set()
            return
        self._take(self._workers[0])
        self._task = asyncio.create_task(self._run(tell_failure), name="prefill call")
        self._task.add_done_callback(self._end)
        self._task.add_done_callback(lambda _task: note_end())

    async def is_over(self, limit_s: float | None) -> bool:
        """Wait until no more blocks will come, at most so long. Return whether that is so."""
        try:
            async with asyncio.timeout(limit_s):
                await self.over.wait()
        except TimeoutError:
            return False
        return True

    async def wait(self, limit_s: float) -> None:
        """Wait for the call's end, at most so long. Never fails."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=limit_s)

    def give_up(self) -> None:
        """Have the worker stop: what it has published stays, the rest is computed elsewhere."""
        if self._task is not None:
            self._task.cancel()

    async def stop(self) -> None:
        """Cancel what runs; return when it is over."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self, tell_failure: Callable[[], Awaitable[None]]) -> None:
        try:
            maker = await self._make()
        finally:
            self.over.set()
        if maker is not None:
            self._calls.note_arrival(self._keys, self._nodes or (maker.pool_address,))
        else:
            await tell_failure()

    async def _make(self) -> Member | None:
        """Try one worker after another; return the one that has finished."""
        for member in self._workers:
            self._take(member)
            try:
                await self._follow(member)
                return member
            except PrfaasError as error:
                self._calls.metrics.prefill_failed(error.code)
                log.warning("prefill_failed", worker=member.worker, code=error.code, error=str(error))
                if isinstance(error, Unavailable):
                    self._calls.registry.lost(member.worker)
                elif not error.retriable:
                    return None  # it would fail anywhere
        return None

    async def _follow(self, member: Member) -> None:
        """Follow one call to its end. Raises what it fails with."""
        note = self._note_call(site_of(member))
        try:
            with traced_prefill(note):
                await self._hear(member, note)
        except PrfaasError as error:
            note.ended(error.code)
            raise
        finally:
            note.ended()

    async def _hear(self, member: Member, note: PrefillNote) -> None:
        call = self._calls.client.prefill(member.worker, member.address, self._order, self._deadline.remaining())
        counted = 0
        async with aclosing(call) as progress:
            async for news in progress:
                note.heard(news.computed_tokens, news.num_blocks_done, news.timings)
                self._usage.prefill_tokens += news.computed_tokens - counted
                counted = news.computed_tokens

    def _take(self, member: Member) -> None:
        """Have the blocks promised by this worker, and by no other."""
        if self._promise is not None and self._promise.worker == member.worker:
            return
        self._let_go()
        self._promise = PrefillPromise(member.worker, self._keys)
        self._calls.promises.add(self._promise)
        self._assignment = self._calls.registry.assign(member.worker, self._work)

    def _let_go(self) -> None:
        if self._promise is not None and self._assignment is not None:
            self._calls.promises.drop(self._promise)
            self._calls.registry.release(self._assignment)
            self._promise = self._assignment = None

    def _end(self, task: asyncio.Task[None]) -> None:
        self._let_go()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("prefill_crashed", exc_info=error)  # decode computes what it then waits for in vain
