"""The window in front of one worker: what is under way there, and who waits for room. Pure; the clock is passed in."""

import math
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.gateway.admission.fair_queue import FairQueue, Waiting
from services.gateway.admission.rate import WorkRate
from services.gateway.admission.usage import TenantUsage
from shared.tenant import Tenant

T = TypeVar("T")

FIRST_OF_ALL = -(1 << 31)
"""The priority that comes before all others."""

STANDS_BACK = 10
"""Levels of priority by which a tenant that uses much stands back. A request that has waited here for long has an early
deadline when it comes to its worker, which orders by deadlines too: so many levels outweigh any (`MAX_PRIORITY_S`)."""


@dataclass(slots=True)
class Occupancy:
    """The prompts under way that one window has room for."""

    num_prompts: int = 0
    prompts_s: float = 0.0

    def is_open(self, window_s: float) -> bool:
        return not self.num_prompts or self.prompts_s < window_s

    def add(self, cost_s: float) -> None:
        self.num_prompts += 1
        self.prompts_s += cost_s

    def remove(self, cost_s: float) -> None:
        self.num_prompts -= 1
        self.prompts_s = self.prompts_s - cost_s if self.num_prompts else 0.0


@dataclass(slots=True, eq=False)
class UnderWay:
    """A request that the worker has. Made by `DispatchWindow.start`, given back to it until `ended`."""

    tenant: Tenant
    cost_s: float
    room: Occupancy
    is_modest: bool  # its tenant used little when it passed
    is_prompt: bool = True  # its first token is not out


@dataclass(slots=True, eq=False)
class DispatchWindow(Generic[T]):
    """Lets requests pass to a worker while the prompt work there is less than the window; the others wait in turn.

    One request may always be under way, whatever it costs. For when the window is full there is a second one of the
    same size, for tenants that use little beside the busiest: a tenant that floods leaves it free. With room and
    without anybody waiting, a request takes no turn.
    """

    window_s: float
    queue: FairQueue[T] = field(default_factory=FairQueue)
    rate: WorkRate = field(default_factory=WorkRate)
    usage: TenantUsage = field(default_factory=TenantUsage)
    first: Occupancy = field(default_factory=Occupancy)
    second: Occupancy = field(default_factory=Occupancy)
    num_open: int = 0  # requests that have not ended

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way and nobody waits."""
        return not self.num_open and not self.queue

    def pass_now(self, tenant: Tenant, cost_s: float, now: float) -> UnderWay | None:
        """Let a request pass if it is its turn and there is room; None: it has to wait."""
        self.usage.asked(tenant, now)
        if not self._may_pass(tenant, now):
            return None
        if self.queue:
            self.queue.charge(tenant, cost_s)
        return self.start(tenant, cost_s, now)

    def next(self, now: float) -> Waiting[T] | None:
        """Return who may pass now, no longer waiting; None when nobody waits or there is no room. It is to `start`."""
        if not self.queue:
            return None
        if self.first.is_open(self.window_s):
            return self.queue.pop()
        if not self.second.is_open(self.window_s):
            return None
        modest = (tenant for tenant in self.queue.waiting_tenants() if self.usage.is_modest(tenant, now))
        tenant = next(modest, None)
        return None if tenant is None else self.queue.pop_of(tenant)

    def start(self, tenant: Tenant, cost_s: float, now: float) -> UnderWay:
        """Count a request as under way, though there may be no room: one that waited elsewhere may be sent here.

        Then it makes the first window fuller than it should be, and leaves the second to whom that is for.
        """
        self.rate.note(0.0, now, self._is_busy)
        is_modest = self.usage.is_modest(tenant, now)
        room = self.second if is_modest and not self.first.is_open(self.window_s) else self.first
        room.add(cost_s)
        self.usage.add(tenant, cost_s, now)
        self.num_open += 1
        return UnderWay(tenant, cost_s, room, is_modest)

    def prompt_done(self, request: UnderWay, now: float) -> None:
        """The first token is out; idempotent."""
        if request.is_prompt:
            self.rate.note(request.cost_s, now, True)
            self._leave_room(request)

    def ended(self, request: UnderWay, now: float) -> None:
        """The request is over, however it ended. A prompt that was not done says nothing of the worker's rate."""
        if request.is_prompt:
            self.rate.note(0.0, now, True)
            self._leave_room(request)
        self.num_open -= 1

    def wait_s(self, tenant: Tenant, priority: int, now: float) -> float:
        """Return how long a newcomer would wait to pass, as predicted."""
        if self._may_pass(tenant, now):
            return 0.0
        excess_s = max(0.0, self.first.prompts_s - self.window_s)
        return excess_s / self.rate.value + self.ahead_s(tenant, priority, now)

    def ahead_s(self, tenant: Tenant, priority: int, now: float) -> float:
        """Return how long a newcomer would wait for those that wait already: what is under way is not counted."""
        if self._may_pass(tenant, now):
            return 0.0
        return self.queue.ahead_s(tenant, priority) / self.rate.value

    def next_of_s(self, tenant: Tenant, now: float) -> float:
        """Return when a tenant's next one will have passed, as predicted."""
        return self.wait_s(tenant, FIRST_OF_ALL, now)

    def priority_at_worker(self, request: UnderWay, priority: int) -> int:
        """Return the priority to send along. The worker's own queue is short, and yet it must not undo the turns.

        A tenant alone keeps its priorities. Among several a request may stand back but not push ahead, and those of
        tenants that use much stand back behind the others'.
        """
        if self.usage.num_present <= 1 or self.window_s == math.inf:
            return priority
        return max(0, priority) + (0 if request.is_modest else STANDS_BACK)

    def _may_pass(self, tenant: Tenant, now: float) -> bool:
        """Return whether a newcomer has room. Nobody overtakes their own tenant's, and only the modest anybody."""
        if not self.queue and self.first.is_open(self.window_s):
            return True
        if self.queue.num_of(tenant) or not self.second.is_open(self.window_s):
            return False
        return self.usage.is_modest(tenant, now)

    @property
    def _is_busy(self) -> bool:
        return self.first.num_prompts + self.second.num_prompts > 0

    def _leave_room(self, request: UnderWay) -> None:
        request.is_prompt = False
        request.room.remove(request.cost_s)
