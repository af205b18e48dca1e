"""The window in front of one worker: what is under way there, and who waits for room. Pure; the clock is passed in."""

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.gateway.admission.fair_queue import FairQueue, Waiting
from services.gateway.admission.rate import WorkRate
from shared.tenant import Tenant

T = TypeVar("T")

PRESENT_S = 60.0
"""A tenant counts as present for so long after its last request: the window that others leave it must be free when it
comes back, and a tenant that reads an answer before it asks again is away for seconds."""

MAX_PRESENT = 1024
"""Tenants that are remembered so; of more, those that asked last."""


@dataclass(slots=True, eq=False)
class UnderWay:
    """A request that the worker has. Made by `DispatchWindow`, given back to it until `ended`."""

    tenant: Tenant
    cost_s: float
    is_prompt: bool = True  # its first token is not out


@dataclass(slots=True)
class _Share:
    """What a tenant has at the worker."""

    num_open: int = 0
    open_s: float = 0.0  # prompt work of requests that have not ended


@dataclass(slots=True, eq=False)
class DispatchWindow(Generic[T]):
    """Lets requests pass to a worker while the prompt work there is less than the window; the others wait in turn.

    One request may always be under way, whatever it costs. While several tenants are present, there is a second window
    of the same size for those that have less than an equal share of what the worker has: a tenant that floods leaves it
    free. Without anybody waiting and with room, passing takes no turn.
    """

    window_s: float
    queue: FairQueue[T] = field(default_factory=FairQueue)
    rate: WorkRate = field(default_factory=WorkRate)
    _prompts_s: float = 0.0
    _num_prompts: int = 0
    _open_s: float = 0.0
    _shares: dict[Tenant, _Share] = field(default_factory=dict)
    _present: OrderedDict[Tenant, float] = field(default_factory=OrderedDict)  # when each came last, in that order

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way and nobody waits."""
        return not self._shares and not self.queue

    def pass_now(self, tenant: Tenant, cost_s: float, now: float) -> UnderWay | None:
        """Let a request pass if nobody waits and there is room; None: it has to wait."""
        self._note_present(tenant, now)
        if self.queue or not self._has_room(tenant, cost_s):
            return None
        return self.start(tenant, cost_s, now)

    def next(self) -> Waiting[T] | None:
        """Return who may pass now, no longer waiting; None when nobody waits or there is no room. It is to `start`."""
        if not self.queue:
            return None
        head = self.queue.peek()
        return self.queue.pop() if self._has_room(head.tenant, head.cost_s) else None

    def start(self, tenant: Tenant, cost_s: float, now: float) -> UnderWay:
        """Count a request as under way."""
        self.rate.note(0.0, now, self._num_prompts > 0)
        self._prompts_s += cost_s
        self._num_prompts += 1
        self._open_s += cost_s
        share = self._shares.setdefault(tenant, _Share())
        share.num_open += 1
        share.open_s += cost_s
        return UnderWay(tenant, cost_s)

    def prompt_done(self, request: UnderWay, now: float) -> None:
        """The first token is out; idempotent."""
        if not request.is_prompt:
            return
        self.rate.note(request.cost_s, now, True)
        self._prompt_over(request)

    def ended(self, request: UnderWay, now: float) -> None:
        """The request is over, however it ended. Its prompt, if it was not done, says nothing of the worker's rate."""
        if request.is_prompt:
            self.rate.note(0.0, now, True)
            self._prompt_over(request)
        share = self._shares[request.tenant]
        share.num_open -= 1
        share.open_s -= request.cost_s
        self._open_s -= request.cost_s
        if not share.num_open:
            del self._shares[request.tenant]
        if not self._shares:
            self._open_s = 0.0  # and what rounding has left of it

    def wait_s(self, tenant: Tenant, cost_s: float, priority: int) -> float:
        """Return how long a newcomer would wait to pass, as predicted."""
        if not self.queue and self._has_room(tenant, cost_s):
            return 0.0
        excess_s = max(0.0, self._prompts_s - self.window_s)
        return (excess_s + self.queue.ahead_s(tenant, priority)) / self.rate.value

    def next_of_s(self, tenant: Tenant) -> float:
        """Return when somebody of a tenant that waits will have passed, as predicted."""
        return self.wait_s(tenant, 0.0, priority=-(1 << 31))

    def priority_at_worker(self, request: UnderWay, priority: int) -> int:
        """Return the priority to send along. The worker's own queue is short, and yet it must not undo the turns.

        A tenant alone keeps its priorities. Among several a request may stand back but not push ahead, and those of a
        tenant above its share stand back behind the others'.
        """
        if len(self._present) <= 1 or self.window_s == math.inf:
            return priority
        share = self._shares[request.tenant]
        is_above = share.num_open > 1 and self._is_above(share.open_s, self._open_s)
        return max(0, priority) + is_above

    def _has_room(self, tenant: Tenant, cost_s: float) -> bool:
        if not self._num_prompts:
            return True
        share = self._shares.get(tenant)
        is_above = share is not None and self._is_above(share.open_s + cost_s, self._open_s + cost_s)
        may_use_second = len(self._present) > 1 and not is_above
        return self._prompts_s < self.window_s * (2 if may_use_second else 1)

    def _is_above(self, own_s: float, all_s: float) -> bool:
        """Return whether `own_s` is more than an equal share of what the worker has."""
        return own_s * len(self._present) > all_s

    def _prompt_over(self, request: UnderWay) -> None:
        request.is_prompt = False
        self._num_prompts -= 1
        self._prompts_s = self._prompts_s - request.cost_s if self._num_prompts else 0.0

    def _note_present(self, tenant: Tenant, now: float) -> None:
        self._present[tenant] = now
        self._present.move_to_end(tenant)
        while len(self._present) > MAX_PRESENT or next(iter(self._present.values())) < now - PRESENT_S:
            self._present.popitem(last=False)
