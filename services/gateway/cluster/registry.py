"""Which workers and pools are there, alive and of our model, from membership and load events."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np

from services.gateway.cluster.assigned import Assigned, Assignment, PromptWork
from services.gateway.cluster.links import LinkReports, Links, UnreportedCrossing, UnreportedCrossings
from services.gateway.cluster.workers import NOBODY, WORKER, Member, Rows, Workers, member_of, new_row, take_report
from shared.bus.events import LinkLoad, LoadEvent, MembershipEvent
from shared.ids import Datacenter, LayoutHash, ModelFingerprint, WorkerId
from shared.log import get_logger

log = get_logger()

COVERED_AFTER_S = 0.15
"""A report is taken to know of what was sent so long before it came: a call takes its time to a worker, and the
worker's report the same back."""

SEEN_SMOOTHING = 0.05
"""What the latest request weighs in the share of requests that found a worker busy."""

LEAST_WAIT_S, LEAST_WAIT = 0.02, 0.25
"""A worker is found busy by whom it lets wait so long, and so large a part of what it then does for them: reports are
not exact to the last moment."""

STALE_AFTER_S = 6.0
"""Three missed membership beats; load events, which come more often, count as signs of life too."""


@dataclass(frozen=True, slots=True)
class PoolMember:
    dc: Datacenter
    address: str
    links: tuple[LinkLoad, ...] = ()  # from the datacenters that it pulls from, as it last reported
    suspects: tuple[str, ...] = ()  # addresses of pool nodes that it pulls nothing from, as it last reported
    tier_bytes_per_s: float = 0.0  # reads from its object tier; 0: not known


@dataclass(frozen=True, slots=True)
class RegistryView:
    """What the router sees: only members that are alive and serve exactly our model and KV layout.

    Its tables are the registry's own: a view is good until the registry changes.
    """

    dcs: Sequence[Datacenter] = ()  # by number
    decode: Workers = NOBODY
    prefill: Workers = NOBODY
    pools: Mapping[WorkerId, PoolMember] = field(default_factory=dict)
    links: Links = field(default_factory=lambda: Links.unknown(0))
    problems: tuple[str, ...] = ()  # why known workers are not among them, for the message of `NoWorker`

    def nodes(self, dc: Datacenter) -> tuple[str, ...]:
        """Return the addresses of a datacenter's pool nodes: what its blocks are spread over."""
        return tuple(sorted({pool.address for pool in self.pools.values() if pool.dc == dc}))

    def suspects(self, dc: Datacenter) -> frozenset[str]:
        """Return the addresses of other datacenters' nodes that some node of `dc` pulls nothing from.

        Suspicion is between two pools: for its own datacenter, and for third ones, a suspect is a node like any other.
        """
        suspected = (pool.suspects for pool in self.pools.values() if pool.dc == dc)
        return frozenset(chain.from_iterable(suspected)).difference(self.nodes(dc))


def no_decode_worker(members: RegistryView) -> str:
    """Return the sentence that tells a user why nothing can be served."""
    reasons = f" ({'; '.join(members.problems)})" if members.problems else ""
    return f"no decode worker is available{reasons}"


@dataclass(slots=True)
class _Entry:
    """The newest epoch's news of one process. `heard_at` is an arrival time, so that peers' clocks do not matter."""

    event: MembershipEvent
    heard_at: float
    row: int = -1  # in its role's fleet
    lost: bool = False  # a call to it has failed since its last sign of life
    reachable: bool = True  # from this process, as its channel says


class _Fleet:
    """All engines of one role that were ever announced, in the order in which they were."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.rows: Rows = np.zeros(0, WORKER)
        self.assigned: list[Assigned] = []
        self.in_use: set[int] = set()  # rows with open calls of this gateway
        self.heard_at = np.zeros(0)
        self.seen_busy = np.zeros(0)
        self.is_fit = np.zeros(0, bool)  # but for its silence

    def add(self, member: Member, dc: int) -> int:
        """Return the row of a new worker."""
        number = len(self.members)
        self.members.append(member)
        self.assigned.append(Assigned())
        self.rows = np.append(self.rows, new_row(number, dc))
        self.heard_at = np.append(self.heard_at, 0.0)
        self.seen_busy = np.append(self.seen_busy, 0.0)
        self.is_fit = np.append(self.is_fit, False)
        return number

    def begin_anew(self, row: int, member: Member, dc: int) -> None:
        """Forget what an earlier process of the worker has said."""
        self.members[row] = member
        self.rows[row : row + 1] = new_row(row, dc)

    def usable(self, newest_at: float, now: float) -> Workers:
        """Return the workers that are fit and not silent, their figures as of now."""
        chosen = self.is_fit & (newest_at - self.heard_at <= STALE_AFTER_S)
        rows = self.rows[chosen]
        worked_s = np.maximum(0.0, now - self.heard_at[chosen])
        left = np.maximum(0.0, 1 - worked_s / np.maximum(rows["queued_s"], 1e-9))
        rows["queued_s"] *= left
        rows["queued_tokens"] *= left
        rows["seen_busy"] = self.seen_busy[chosen]
        if self.in_use:
            numbers = np.array(sorted(self.in_use), np.intp)
            at = np.searchsorted(rows["number"], numbers)
            for row, number in zip(at.tolist(), numbers.tolist(), strict=True):
                if row < len(rows) and rows["number"][row] == number:
                    _add_assigned(rows[row : row + 1], self.assigned[number])
        return Workers(self.members, rows)

    def assign(self, row: int, assignment: Assignment) -> None:
        is_busy = self._queued_s(row, assignment.at) > max(LEAST_WAIT_S, LEAST_WAIT * assignment.work.seconds)
        self.seen_busy[row] += SEEN_SMOOTHING * (is_busy - self.seen_busy[row])
        self.assigned[row].add(assignment)
        self.in_use.add(row)

    def release(self, row: int, assignment: Assignment) -> None:
        self.assigned[row].remove(assignment)
        if not self.assigned[row].num_open:
            self.in_use.discard(row)

    def _queued_s(self, row: int, now: float) -> float:
        reported = float(self.rows["queued_s"][row]) - (now - float(self.heard_at[row]))
        return max(0.0, reported) + self.assigned[row].unreported_work.seconds


def _add_assigned(row: Rows, assigned: Assigned) -> None:
    work = assigned.unreported_work
    row["queued_s"] += work.seconds
    row["queued_tokens"] += work.tokens
    row["context_tokens"] += work.context_tokens
    row["free_tokens"] -= work.context_tokens
    row["requests"] = np.maximum(row["requests"], assigned.num_open)


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
        self._fleets = {"decode": _Fleet(), "prefill": _Fleet()}
        self._pools: dict[WorkerId, PoolMember] = {}
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
            entry.reachable = old.reachable
        if event.role == "cachepool":
            self._note_pool(event, is_new)
        self._note_state(entry)
        return is_new and not event.left

    def apply_load(self, event: LoadEvent, now: float) -> None:
        """Take a load report; one from a process that has not announced itself is ignored."""
        self._newest_at = max(self._newest_at, now)
        entry = self._entries.get(event.worker)
        if entry is None or event.epoch != entry.event.epoch:
            return
        entry.heard_at, entry.lost = now, False
        if entry.event.role == "cachepool":
            pool = self._pools[event.worker]
            self._pools[event.worker] = replace(
                pool, links=event.links, suspects=event.suspects, tier_bytes_per_s=event.tier_bytes_per_s
            )
            self._crossings.reported(self._number(pool.dc), now - COVERED_AFTER_S)
            self._links = None
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

    def assign(self, worker: WorkerId, work: PromptWork = PromptWork()) -> Assignment:  # noqa: B008
        """Count a call to `worker` as its load, which its own reports will show only later. Pairs with `release`."""
        assignment = Assignment(worker, work, self._clock())
        if (entry := self._engine(worker)) is not None:
            self._fleets[entry.event.role].assign(entry.row, assignment)
        return assignment

    def release(self, assignment: Assignment) -> None:
        if (entry := self._engine(assignment.worker)) is not None:
            self._fleets[entry.event.role].release(entry.row, assignment)

    def row_s(self, worker: WorkerId) -> float:
        """Return what a running request adds to a step of an engine, as it has reported; 0 for nobody's."""
        entry = self._engine(worker)
        return 0.0 if entry is None else float(self._fleets[entry.event.role].rows["row_s"][entry.row])

    def note_crossing(self, source: Datacenter, target: Datacenter, num_bytes: float, after_s: float = 0.0) -> None:
        """Count KV that a plan lets cross as the link's backlog, which its pools' reports will show only later.

        `after_s`: how long it takes until a pool is asked for it.
        """
        at, numbers = self._clock() + after_s, (self._number(source), self._number(target))
        self._crossings.add(UnreportedCrossing(at, *numbers, num_bytes))

    def pool_addresses(self) -> dict[WorkerId, str]:
        """Return where the pool nodes are that have not left, usable or not."""
        return {
            worker: entry.event.address
            for worker, entry in self._entries.items()
            if entry.event.role == "cachepool" and not entry.event.left
        }

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

    def view(self) -> RegistryView:
        """Return what is usable now."""
        now = self._clock()
        decode, prefill = (self._fleets[role].usable(self._newest_at, now) for role in ("decode", "prefill"))
        pools = {worker: pool for worker, pool in self._pools.items() if self._problem(self._entries[worker]) is None}
        is_anybody_missing = len(decode) + len(prefill) + len(pools) < len(self._entries)
        problems = self._problems() if is_anybody_missing else ()
        return RegistryView(tuple(self._dcs), decode, prefill, pools, self._current_links(pools), problems)

    def _current_links(self, pools: Mapping[WorkerId, PoolMember]) -> Links:
        if self._links is None or len(self._links.backlog_bytes) < len(self._dcs):
            reports = [LinkReports(pool.dc, pool.links) for pool in pools.values()]
            self._links = Links.reported(tuple(self._dcs), reports)
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
        fleet.begin_anew(old.row, member_of(event), dc)
        return old.row

    def _note_pool(self, event: MembershipEvent, is_new: bool) -> None:
        if is_new:
            self._pools[event.worker] = PoolMember(event.dc, event.address)
        self._links = None

    def _note_state(self, entry: _Entry) -> None:
        """Let the fleet know what has become of one of its workers."""
        if entry.event.role == "cachepool":
            self._links = None
            return
        fleet, row = self._fleets[entry.event.role], entry.row
        fleet.members[row] = member_of(entry.event)
        fleet.heard_at[row] = entry.heard_at
        fleet.is_fit[row] = self._unfitness(entry) is None

    def _engine(self, worker: WorkerId) -> _Entry | None:
        entry = self._entries.get(worker)
        return None if entry is None or entry.event.role == "cachepool" else entry

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
