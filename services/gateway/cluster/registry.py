"""Which workers and pools are there, alive and of our model, from membership and load events. Pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain

from shared.bus.events import LinkLoad, LoadEvent, MembershipEvent
from shared.ids import Datacenter, LayoutHash, ModelFingerprint, WorkerId
from shared.log import get_logger

log = get_logger()

STALE_AFTER_S = 6.0
"""Three missed membership beats; load events, which come more often, count as signs of life too."""


@dataclass(frozen=True, slots=True)
class Member:
    """A worker that requests may be sent to."""

    worker: WorkerId
    dc: Datacenter
    address: str
    pool_address: str
    load: int = 0  # requests running and waiting
    codec_threads: int = 1  # that encode and decode its entries


@dataclass(frozen=True, slots=True)
class PoolMember:
    dc: Datacenter
    address: str
    links: tuple[LinkLoad, ...] = ()  # from the datacenters that it pulls from, as it last reported
    suspects: tuple[str, ...] = ()  # addresses of pool nodes that it pulls nothing from, as it last reported


@dataclass(frozen=True, slots=True)
class RegistryView:
    """What the router sees: only members that are alive and serve exactly our model and KV layout."""

    decode: tuple[Member, ...] = ()
    prefill: tuple[Member, ...] = ()
    pools: Mapping[WorkerId, PoolMember] = field(default_factory=dict)
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
    running: int = 0
    waiting: int = 0
    links: tuple[LinkLoad, ...] = ()
    suspects: tuple[str, ...] = ()
    lost: bool = False  # a call to it has failed since its last sign of life
    reachable: bool = True  # from this process, as its channel says


class Registry:
    """Members by worker id. The newest epoch of a worker wins; one that has left stays left for that epoch.

    Alive means heard of recently *as compared with the newest message of the bus*: when the broker falls silent,
    nobody becomes stale, because their silence says nothing about them.
    """

    def __init__(self, fingerprint: ModelFingerprint, layout_hash: LayoutHash) -> None:
        self._fingerprint = fingerprint
        self._layout_hash = layout_hash
        self._entries: dict[WorkerId, _Entry] = {}
        self._newest_at = 0.0
        self._assigned: Counter[WorkerId] = Counter()

    def apply_membership(self, event: MembershipEvent, now: float) -> bool:
        """Take an announcement. Returns True when it starts a life of the worker that was not known."""
        self._newest_at = max(self._newest_at, now)
        old = self._entries.get(event.worker)
        if old is not None and (event.epoch < old.event.epoch or (event.epoch == old.event.epoch and old.event.left)):
            return False
        is_new = old is None or event.epoch > old.event.epoch
        if old is None or is_new:
            self._entries[event.worker] = _Entry(event, now)
        else:
            old.event, old.heard_at, old.lost = event, now, False
        if is_new and (problem := self._mismatch(event)) is not None:
            log.warning("worker_unusable", worker=event.worker, reason=problem)
        return is_new and not event.left

    def apply_load(self, event: LoadEvent, now: float) -> None:
        """Take a load report; one from a process that has not announced itself is ignored."""
        self._newest_at = max(self._newest_at, now)
        entry = self._entries.get(event.worker)
        if entry is None or event.epoch != entry.event.epoch:
            return
        entry.running, entry.waiting = event.running, event.waiting
        entry.links, entry.suspects = event.links, event.suspects
        entry.heard_at, entry.lost = now, False

    def lost(self, worker: WorkerId) -> None:
        """Use a worker no more until it gives a sign of life: a call to it has failed."""
        if worker in self._entries:
            self._entries[worker].lost = True

    def assign(self, worker: WorkerId) -> None:
        """Count a call to `worker` as its load, which its own reports will show only later. Pairs with `release`."""
        self._assigned[worker] += 1

    def release(self, worker: WorkerId) -> None:
        self._assigned[worker] -= 1

    def pool_addresses(self) -> dict[WorkerId, str]:
        """Return where the pool nodes are that have not left, usable or not."""
        return {
            worker: entry.event.address
            for worker, entry in self._entries.items()
            if entry.event.role == "cachepool" and not entry.event.left
        }

    def set_reachable(self, worker: WorkerId, reachable: bool) -> None:
        """Say whether a connection to a worker can be made. Its signs of life on the bus do not make it reachable."""
        if worker in self._entries:
            self._entries[worker].reachable = reachable

    def pool_at(self, address: str) -> WorkerId | None:
        """Return the pool that serves at `address`."""
        for worker, entry in self._entries.items():
            if entry.event.role == "cachepool" and entry.event.address == address and not entry.event.left:
                return worker
        return None

    def view(self) -> RegistryView:
        members: dict[str, list[Member]] = {"decode": [], "prefill": []}
        pools: dict[WorkerId, PoolMember] = {}
        problems: list[str] = []
        for worker, entry in sorted(self._entries.items()):
            event = entry.event
            if (problem := self._problem(entry)) is not None:
                problems.append(f"{worker}: {problem}")
            elif event.role == "cachepool":
                pools[worker] = PoolMember(event.dc, event.address, entry.links, entry.suspects)
            else:
                # Reports lag by half a second; what this gateway has sent meanwhile is known.
                load = max(entry.running + entry.waiting, self._assigned[worker])
                members[event.role].append(
                    Member(worker, event.dc, event.address, event.pool_address, load, event.codec_threads)
                )
        return RegistryView(tuple(members["decode"]), tuple(members["prefill"]), pools, tuple(problems))

    def _problem(self, entry: _Entry) -> str | None:
        """Return why a worker cannot be used, or None."""
        if entry.event.left:
            return "has left"
        if self._newest_at - entry.heard_at > STALE_AFTER_S:
            return f"silent for {self._newest_at - entry.heard_at:.0f} s"
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
