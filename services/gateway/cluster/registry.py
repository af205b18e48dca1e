"""Which workers and pools are there, alive and of our model, from membership and load events."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from services.gateway.cluster.assigned import Assignment, PromptWork
from services.gateway.cluster.fleet import STALE_AFTER_S, RoleFleet
from services.gateway.cluster.links import LinkReports, Links, UnreportedCrossing, UnreportedCrossings
from services.gateway.cluster.view import KnownProcess, PoolMember, PoolMembers, RegistryView
from services.gateway.cluster.workers import member_of, take_report
from shared.bus.events import LoadEvent, MembershipEvent
from shared.ids import Datacenter, LayoutHash, ModelFingerprint, WorkerId
from shared.log import get_logger

log = get_logger()

COVERED_AFTER_S = 0.15
"""A report is taken to know of what was sent so long before it came: a call takes its time to a worker, and the
worker's report the same back."""

NO_WAITS: Mapping[WorkerId, float] = MappingProxyType({})


@dataclass(slots=True)
class _Entry:
    """The newest epoch's news of one process. `heard_at` is an arrival time, so that peers' clocks do not matter."""

    event: MembershipEvent
    heard_at: float
    row: int = -1  # in its role's fleet
    lost: bool = False  # a call to it has failed since its last sign of life
    reachable: bool = True  # from this process, as its channel says
    load: LoadEvent | None = None  # the latest of this epoch


class Registry:
    """Members by worker id. The newest epoch of a worker wins; one that has left stays left for that epoch.

    Alive means heard of recently *as compared with the newest message of the bus*: when the broker falls silent,
    nobody becomes stale, because their silence says nothing about them.
    """

    def __init__(
        self,
        fingerprint: ModelFingerprint,
        layout_hash: LayoutHash,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` is the one that `now` of events is read from."""
        self._fingerprint = fingerprint
        self._layout_hash = layout_hash
        self._clock = clock
        self._entries: dict[WorkerId, _Entry] = {}
        self._newest_at = 0.0
        self._dcs: dict[Datacenter, int] = {}
        self._fleets = {"decode": RoleFleet(), "prefill": RoleFleet()}
        self._pools: dict[WorkerId, PoolMember] = {}
        self._usable_pools: PoolMembers | None = None  # made when somebody looks
        self._oldest_pool_at = 0.0  # when it was heard of of the usable ones that was not for longest
        self._links: Links | None = None  # made when somebody looks
        self._crossings = UnreportedCrossings()

    def apply_membership(self, event: MembershipEvent, now: float) -> bool:
        """Take an announcement. Returns True when it starts a life of the worker that was not known."""
        self._newest_at = max(self._newest_at, now)
        old = self._entries.get(event.worker)
        if old is not None and (event.epoch < old.event.epoch or (event.epoch == old.event.epoch and old.event.left)):
            return False
        is_new = old is None or event.epoch > old.event.epoch
        if is_new and (problem := self._mismatch(event)) is not None:
            log.warning("worker_unusable", worker=event.worker, reason=problem)
        row = self._row_for(event, old) if is_new or old is None else old.row
        entry = self._entries[event.worker] = _Entry(event, now, row)
        if old is not None and not is_new:
            entry.reachable, entry.load = old.reachable, old.load
        if event.role != "cachepool":
            self._fleets[event.role].members[row] = member_of(event)
        elif is_new:
            self._pools[event.worker] = PoolMember(event.dc, event.address)
        self._note_state(entry)
        return is_new and not event.left

    def apply_load(self, event: LoadEvent, now: float) -> None:
        """Take a load report; one from a process that has not announced itself is ignored."""
        self._newest_at = max(self._newest_at, now)
        entry = self._entries.get(event.worker)
        if entry is None or event.epoch != entry.event.epoch:
            return
        entry.heard_at, entry.lost, entry.load = now, False, event
        if entry.event.role == "cachepool":
            pool = self._pools[event.worker]
            self._pools[event.worker] = replace(
                pool, links=event.links, suspects=event.suspects, tier_bytes_per_s=event.tier_bytes_per_s
            )
            self._crossings.reported(self._number(pool.dc), now - COVERED_AFTER_S)
        else:
            fleet = self._fleets[entry.event.role]
            take_report(fleet.rows[entry.row : entry.row + 1], event, entry.event)
            fleet.assigned[entry.row].reported(now - COVERED_AFTER_S)
        self._note_state(entry)

    def lost(self, worker: WorkerId) -> None:
        """Use a worker no more until it gives a sign of life: a call to it has failed."""
        if (entry := self._entries.get(worker)) is not None:
            entry.lost = True
            self._note_state(entry)

    def assign(
        self,
        worker: WorkerId,
        work: PromptWork = PromptWork(),  # noqa: B008
        lose: Callable[[], None] | None = None,
    ) -> Assignment:
        """Count a call to `worker` as its load, which its own reports will show only later. Pairs with `release`.

        `lose` is called when the worker is silent meanwhile: it ends the call as one that was lost.
        """
        entry = self._entries.get(worker)
        if entry is None or entry.event.role == "cachepool":
            return Assignment(worker, work, self._clock())
        assignment = Assignment(worker, work, self._clock(), entry.event.role, entry.row, lose)
        self._fleets[entry.event.role].assign(assignment)
        return assignment

    def release(self, assignment: Assignment) -> None:
        """Count a call no more; the worker may have another role by now, or may not have been known."""
        if assignment.role is not None:
            self._fleets[assignment.role].release(assignment)

    def lose_silent(self) -> None:
        """Have calls to silent workers end: a process that hangs in Python keeps its connections alive."""
        for fleet in self._fleets.values():
            for worker, count in fleet.lose_silent(self._newest_at).items():
                log.warning("worker_silent", worker=worker, num_calls_lost=count)

    def row_s(self, worker: WorkerId) -> float:
        """Return what a running request adds to a step of an engine, as it has reported; 0 for nobody's."""
        entry = self._entries.get(worker)
        if entry is None or entry.event.role == "cachepool":
            return 0.0
        return float(self._fleets[entry.event.role].rows["row_s"][entry.row])

    def note_crossing(self, source: Datacenter, target: Datacenter, num_bytes: float, after_s: float = 0.0) -> None:
        """Count KV that a plan lets cross as the link's backlog, which its pools' reports will show only later.

        `after_s`: how long it takes until a pool is asked for it.
        """
        at, numbers = self._clock() + after_s, (self._number(source), self._number(target))
        self._crossings.add(UnreportedCrossing(at, *numbers, num_bytes))

    def addresses(self) -> dict[WorkerId, str]:
        """Return where the processes are that have not left, usable or not."""
        return {worker: entry.event.address for worker, entry in self._entries.items() if not entry.event.left}

    def set_reachable(self, worker: WorkerId, reachable: bool) -> None:
        """Say whether a connection to a worker can be made. Its signs of life on the bus do not make it reachable."""
        if (entry := self._entries.get(worker)) is not None:
            entry.reachable = reachable
            self._note_state(entry)

    def pool_at(self, address: str) -> WorkerId | None:
        """Return the pool that serves at `address`."""
        for worker, pool in self._pools.items():
            if pool.address == address and not self._entries[worker].event.left:
                return worker
        return None

    def known(self) -> list[KnownProcess]:
        """Return all that were ever announced, by name, for who wants to see them; usable or not."""
        found = sorted(self._entries.items())
        return [
            KnownProcess(entry.event, entry.load, self._newest_at - entry.heard_at, self._problem(entry))
            for _, entry in found
        ]

    def view(self, waits: Mapping[WorkerId, float] = NO_WAITS) -> RegistryView:
        """Return what is usable now. `waits`: seconds before somebody who looks may send a worker anything."""
        now = self._clock()
        waits_of: dict[str, dict[int, float]] = {"decode": {}, "prefill": {}}
        for worker, seconds in waits.items():
            if (entry := self._entries.get(worker)) is not None and entry.event.role in waits_of:
                waits_of[entry.event.role][entry.row] = seconds
        decode, prefill = (self._fleets[role].usable(self._newest_at, now, of) for role, of in waits_of.items())
        pools = self._current_pools()
        return RegistryView(tuple(self._dcs), decode, prefill, pools, self._current_links(pools), self._problems)

    def _current_pools(self) -> PoolMembers:
        """Return the usable pools: the same ones until something is heard of one, or nothing for too long."""
        if self._usable_pools is None or self._newest_at - self._oldest_pool_at > STALE_AFTER_S:
            usable = {worker: pool for worker, pool in self._pools.items() if self._is_usable(worker)}
            self._usable_pools = PoolMembers(usable)
            self._oldest_pool_at = min((self._entries[worker].heard_at for worker in usable), default=math.inf)
        return self._usable_pools

    def _is_usable(self, worker: WorkerId) -> bool:
        return self._problem(self._entries[worker]) is None

    def _current_links(self, pools: PoolMembers) -> Links:
        if self._links is None or len(self._links.backlog_bytes) < len(self._dcs):
            reports = [LinkReports(pool.dc, pool.links) for pool in pools.values()]
            self._links = Links.reported(tuple(self._dcs), reports)
        if not self._crossings:
            return self._links
        links = replace(self._links, backlog_bytes=self._links.backlog_bytes.copy())
        self._crossings.add_to(links.backlog_bytes)
        return links

    def _problems(self) -> tuple[str, ...]:
        found = ((worker, self._problem(entry)) for worker, entry in sorted(self._entries.items()))
        return tuple(f"{worker}: {problem}" for worker, problem in found if problem is not None)

    def _row_for(self, event: MembershipEvent, old: _Entry | None) -> int:
        dc = self._number(event.dc)
        if event.role == "cachepool":
            return -1
        fleet = self._fleets[event.role]
        if old is None or old.event.role != event.role:
            if old is not None and old.row >= 0:
                self._fleets[old.event.role].is_fit[old.row] = False
            return fleet.add(member_of(event), dc)
        fleet.begin_anew(old.row, dc)
        return old.row

    def _note_state(self, entry: _Entry) -> None:
        """Let the fleet know what has become of one of its workers, or look at the links again for a pool's sake."""
        if entry.event.role == "cachepool":
            self._links = self._usable_pools = None
            return
        fleet, row = self._fleets[entry.event.role], entry.row
        fleet.heard_at[row] = entry.heard_at
        fleet.is_fit[row] = self._unfitness(entry) is None

    def _number(self, dc: Datacenter) -> int:
        return self._dcs.setdefault(dc, len(self._dcs))

    def _problem(self, entry: _Entry) -> str | None:
        """Return why a worker cannot be used, or None."""
        if not entry.event.left and self._newest_at - entry.heard_at > STALE_AFTER_S:
            return f"silent for {self._newest_at - entry.heard_at:.0f} s"
        return self._unfitness(entry)

    def _unfitness(self, entry: _Entry) -> str | None:
        """Return why a worker cannot be used though it is heard of, or None."""
        if entry.event.left:
            return "has left"
        if entry.lost:
            return "a call to it has failed"
        if not entry.reachable:
            return "cannot be reached"
        return self._mismatch(entry.event)

    def _mismatch(self, event: MembershipEvent) -> str | None:
        if event.left or event.role == "cachepool":  # pools are agnostic: every key carries model and layout
            return None
        if event.fingerprint != self._fingerprint:
            return f"serves another model ({event.model_name}, fingerprint {event.fingerprint[:12]})"
        if event.layout_hash != self._layout_hash:
            return "has another KV layout (check PRFAAS_DTYPE and PRFAAS_BLOCK_TOKENS)"
        return None
