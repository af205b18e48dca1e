"""What tenants have used of a worker lately. Pure."""

import math
from collections import OrderedDict
from dataclasses import dataclass, field

from shared.tenant import Tenant

MEMORY_S = 10.0
"""What was used so long ago counts for 1 / e. A tenant that comes back may use about as much before others do. With
a shorter memory, two prompts in a row are taken for a flood where a prompt takes a second."""

MODEST = 0.75
"""A tenant is modest while it uses less than this part of what the busiest uses: equal ones hardly ever are. With a
half, one that uses a quarter of a worker on average, and pauses at random, is taken for another flood now and then."""

PRESENT_S = 60.0
"""A tenant counts as present for so long after its last request: one that reads an answer before it asks again is away
for seconds, and finds that the others have left room."""

MAX_PRESENT = 1024
"""Tenants that are remembered; of more, those that asked last."""


@dataclass(slots=True)
class _Used:
    """Seconds of work, worth less by the second."""

    seconds: float = 0.0
    at: float = 0.0

    def by(self, now: float) -> float:
        return self.seconds * math.exp(min(0.0, self.at - now) / MEMORY_S)


@dataclass(slots=True)
class TenantUsage:
    """Remembers the tenants of the last minute."""

    _used: OrderedDict[Tenant, _Used] = field(default_factory=OrderedDict)  # by when each asked last
    _asked_at: dict[Tenant, float] = field(default_factory=dict)
    _busiest: _Used = field(default_factory=_Used)

    @property
    def num_present(self) -> int:
        return len(self._used)

    def asked(self, tenant: Tenant, now: float) -> None:
        """Note that a tenant is present."""
        self._used.setdefault(tenant, _Used(0.0, now))
        self._used.move_to_end(tenant)
        self._asked_at[tenant] = now
        while (first := next(iter(self._used))) != tenant and (
            len(self._used) > MAX_PRESENT or self._asked_at[first] < now - PRESENT_S
        ):
            del self._used[first], self._asked_at[first]

    def add(self, tenant: Tenant, cost_s: float, now: float) -> None:
        """Note what a tenant makes the worker do."""
        used = self._used.setdefault(tenant, _Used(0.0, now))
        self._asked_at.setdefault(tenant, now)
        used.seconds, used.at = used.by(now) + cost_s, now
        if used.seconds > self._busiest.by(now):
            self._busiest.seconds, self._busiest.at = used.seconds, now

    def is_modest(self, tenant: Tenant, now: float) -> bool:
        """Return whether a tenant has used little beside the busiest, so that one request more is its due."""
        used = self._used.get(tenant)
        return (0.0 if used is None else used.by(now)) < MODEST * self._busiest.by(now)
