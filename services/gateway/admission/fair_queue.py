"""Deficit round robin among tenants, over predicted cost. Pure.

The scheme is that of Shreedhar and Varghese (SIGCOMM 1995), with two changes that RFC 8290 made to it: a tenant pays
after it was served, so that a cost above the quantum holds nobody up, and a tenant that had nothing to serve comes
before those that have had their turns.
"""

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from shared.tenant import Tenant

T = TypeVar("T")

QUANTUM_S = 0.1
"""What a tenant gets in a round: less than most prompts cost, so that tenants take turns by the request."""


@dataclass(slots=True, eq=False)
class Waiting(Generic[T]):
    """Something that waits. Made by `FairQueue.push`, given back by `pop`, or to `remove`."""

    tenant: Tenant
    cost_s: float
    priority: int  # among those of its tenant; lower goes first
    item: T
    number: int = 0  # in the order of arrival


@dataclass(slots=True, eq=False)
class _Backlog(Generic[T]):
    """What waits of one tenant, by priority and then by arrival, and what the tenant may still spend."""

    tenant: Tenant
    deficit_s: float = 0.0
    levels: dict[int, OrderedDict[int, Waiting[T]]] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)  # the priorities in use, sorted
    num_waiting: int = 0
    waiting_s: float = 0.0

    def add(self, waiting: Waiting[T]) -> None:
        level = self.levels.get(waiting.priority)
        if level is None:
            level = self.levels[waiting.priority] = OrderedDict()
            insort(self.order, waiting.priority)
        level[waiting.number] = waiting
        self.num_waiting += 1
        self.waiting_s += waiting.cost_s

    def drop(self, waiting: Waiting[T]) -> None:
        level = self.levels[waiting.priority]
        del level[waiting.number]
        if not level:
            del self.levels[waiting.priority]
            del self.order[bisect_left(self.order, waiting.priority)]
        self.num_waiting -= 1
        self.waiting_s = self.waiting_s - waiting.cost_s if self.num_waiting else 0.0

    @property
    def first(self) -> Waiting[T]:
        return next(iter(self.levels[self.order[0]].values()))

    def ahead_s(self, priority: int) -> float:
        """Return the cost of what a newcomer of this priority would wait behind."""
        if not self.order or priority >= self.order[-1]:
            return self.waiting_s
        before = (level.values() for at, level in self.levels.items() if at <= priority)
        return sum(waiting.cost_s for level in before for waiting in level)


class FairQueue(Generic[T]):
    """Hands out what waits: tenants take turns so that what they were served differs by little, whoever waits longest.

    Over any time in which two tenants both have something waiting, the costs that were served to them differ by at most
    the quantum and twice the greatest cost. A tenant that had nothing waiting is served next. Its debt is not
    forgotten, so that asking for one thing at a time gains nothing. Within a tenant, lower priorities come first, then
    earlier arrivals: a priority never gets ahead of another tenant.

    Each operation takes constant time, but for a step in the number of priorities in use, and for the debts of costs
    that are many quanta, which a pass over the tenants settles. An empty queue remembers nothing.
    """

    def __init__(self, quantum_s: float = QUANTUM_S) -> None:
        self._quantum_s = quantum_s
        self._backlogs: dict[Tenant, _Backlog[T]] = {}
        self._new: deque[_Backlog[T]] = deque()  # have had no turn since something of theirs came
        self._old: deque[_Backlog[T]] = deque()
        self._num_pushed = 0
        self._num_waiting = 0
        self.waiting_s = 0.0  # the cost of all that waits

    def __len__(self) -> int:
        return self._num_waiting

    def num_of(self, tenant: Tenant) -> int:
        """Return how many of a tenant wait."""
        backlog = self._backlogs.get(tenant)
        return 0 if backlog is None else backlog.num_waiting

    def push(self, tenant: Tenant, cost_s: float, priority: int, item: T) -> Waiting[T]:
        """Let `item` wait, in its tenant's turn."""
        self._num_pushed += 1
        waiting = Waiting(tenant, cost_s, priority, item, self._num_pushed)
        self._backlog_of(tenant).add(waiting)
        self._num_waiting += 1
        self.waiting_s += cost_s
        return waiting

    def remove(self, waiting: Waiting[T]) -> None:
        """Take back what waits; the tenant owes nothing for it."""
        self._drop(self._backlogs[waiting.tenant], waiting)

    def pop(self) -> Waiting[T]:
        """Return who is next, and charge the tenant. Raises `IndexError` when nobody waits."""
        return self._served(self._next())

    def pop_of(self, tenant: Tenant) -> Waiting[T]:
        """Return who is next of a tenant that waits, out of turn, and charge the tenant."""
        return self._served(self._backlogs[tenant])

    def charge(self, tenant: Tenant, cost_s: float) -> None:
        """Charge a tenant for what passes without having waited, while others wait."""
        self._backlog_of(tenant).deficit_s -= cost_s

    def waiting_tenants(self) -> list[Tenant]:
        """Return who waits, in the order of turns."""
        return [backlog.tenant for turns in (self._new, self._old) for backlog in turns if backlog.num_waiting]

    def ahead_s(self, tenant: Tenant, priority: int) -> float:
        """Return the cost that is served before a newcomer is.

        While what its tenant has waiting or owes comes up, each other tenant is served as much at most (the fluid limit
        of the rounds).
        """
        own = self._backlogs.get(tenant)
        if own is None:
            return 0.0  # next
        own_s = own.ahead_s(priority)
        turn_s = own_s + max(0.0, -own.deficit_s)
        others = (backlog for backlog in self._backlogs.values() if backlog is not own)
        return own_s + sum(min(backlog.waiting_s, turn_s) for backlog in others)

    def _backlog_of(self, tenant: Tenant) -> _Backlog[T]:
        backlog = self._backlogs.get(tenant)
        if backlog is None:
            backlog = self._backlogs[tenant] = _Backlog(tenant, self._quantum_s)
            self._new.append(backlog)
        return backlog

    def _next(self) -> _Backlog[T]:
        """Return the tenant whose turn it is, at the front of its list."""
        if not self._num_waiting:
            raise IndexError("nobody waits")
        num_passed = 0
        while True:
            turns = self._new or self._old
            backlog = turns[0]
            if backlog.deficit_s > 0 and backlog.num_waiting:
                return backlog
            turns.popleft()
            if backlog.deficit_s > 0 and turns is self._old:
                del self._backlogs[backlog.tenant]  # has nothing and owes nothing
                continue
            if backlog.deficit_s <= 0:
                backlog.deficit_s += self._quantum_s
            self._old.append(backlog)
            num_passed += 1
            if num_passed > len(self._backlogs):
                self._skip_rounds()
                num_passed = 0

    def _skip_rounds(self) -> None:
        """Give everybody as many quanta at once as somebody who waits still lacks."""
        owed_s = min(-backlog.deficit_s for backlog in self._old if backlog.num_waiting)
        num_rounds = int(max(0.0, owed_s) / self._quantum_s)
        for backlog in self._old:
            backlog.deficit_s = min(self._quantum_s, backlog.deficit_s + num_rounds * self._quantum_s)

    def _served(self, backlog: _Backlog[T]) -> Waiting[T]:
        waiting = backlog.first
        backlog.deficit_s -= waiting.cost_s
        self._drop(backlog, waiting)
        return waiting

    def _drop(self, backlog: _Backlog[T], waiting: Waiting[T]) -> None:
        backlog.drop(waiting)
        self._num_waiting -= 1
        self.waiting_s -= waiting.cost_s
        if not self._num_waiting:
            self.waiting_s = 0.0
            self._backlogs.clear()
            self._new.clear()
            self._old.clear()
