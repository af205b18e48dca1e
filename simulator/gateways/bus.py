"""What gateways hear: membership once, loads every so often, placements as they change; all of it late."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

from shared.bus.events import LoadEvent, MembershipEvent
from shared.ids import Datacenter, Epoch, LayoutHash, ModelFingerprint, WorkerId
from simulator.caches.placements import SharedPlacements
from simulator.places import Places
from simulator.seats import EngineSeat

FINGERPRINT = ModelFingerprint("simulated")
PHASES = 10
"""Engines report one after another: a tenth of them at a time."""
BEAT_S = 2.0
"""Whoever is idle says so this often."""


class BusListener(Protocol):
    """A gateway's ear."""

    def apply_membership(self, event: MembershipEvent, now: float) -> object:
        """Take an announcement."""

    def apply_load(self, event: LoadEvent, now: float) -> object:
        """Take a load report."""


class SimulatedBus:
    """Speaks for all engines and pools. `listeners` are by datacenter.

    Loads of a datacenter do not reach another while the link between them is cut off. Placements reach all at once:
    one index stands for those of all gateways.
    """

    def __init__(
        self, places: Places, listeners: Mapping[str, Sequence[BusListener]], placements: SharedPlacements
    ) -> None:
        self._places = places
        self._listeners = listeners
        self._placements = placements
        self._seats = list(places.engines.seats.values())
        self._said_at_s: dict[str, float] = {}
        places.fabric.on_news = lambda dc: self._later(dc, [], [self._pool_load(dc)])

    def begin(self) -> None:
        """Announce everybody and everything at once, then report for ever."""
        for dc, pool in self._places.pools.items():
            self._publish(dc, [self._pool_membership(dc)], [])
            self._placements.meet(pool)
        for seat in self._seats:
            if seat.is_present:
                self._publish(seat.group.dc, [self.membership(seat)], [])
        self._report(0)
        self._place()

    def announce(self, seat: EngineSeat) -> None:
        """Say that an engine has come."""
        self._later(seat.group.dc, [self.membership(seat)], [])

    def membership(self, seat: EngineSeat) -> MembershipEvent:
        dc = seat.group.dc
        return MembershipEvent(
            worker=WorkerId(seat.name),
            role=seat.group.role,
            dc=Datacenter(dc),
            address=f"{seat.name}:1",
            fingerprint=FINGERPRINT,
            layout_hash=self._layout_hash,
            model_name="simulated",
            epoch=Epoch(seat.epoch),
            capacity=int(seat.group.kv_tokens) if seat.group.kv_tokens < float("inf") else 0,
            pool_address=self._places.pools[dc].address,
        )

    @property
    def _layout_hash(self) -> LayoutHash:
        return self._places.kv.layout.hash

    def _pool_membership(self, dc: str) -> MembershipEvent:
        pool = self._places.pools[dc]
        return MembershipEvent(
            worker=pool.worker,
            role="cachepool",
            dc=Datacenter(dc),
            address=pool.address,
            pool_address=pool.address,
            epoch=Epoch(1),
        )

    def _report(self, phase: int) -> None:
        places, now_s = self._places, self._places.loop.now_s
        by_dc: dict[str, list[LoadEvent]] = {}
        for seat in self._seats[phase::PHASES]:
            if seat.is_present and self._has_news(seat, now_s):
                by_dc.setdefault(seat.group.dc, []).append(seat.load(now_s))
        if phase == 0:
            for dc in places.pools:
                by_dc.setdefault(dc, []).append(self._pool_load(dc))
        for dc, loads in by_dc.items():
            self._later(dc, [], loads)
        every_s = places.scenario.bus.load_every_s / PHASES
        places.loop.after(every_s, lambda: self._report((phase + 1) % PHASES))

    def _has_news(self, seat: EngineSeat, now_s: float) -> bool:
        """Whether an engine works, or has only just ceased to, or has been silent for long."""
        is_idle = not seat.engine.num_running and not seat.engine.num_waiting
        said_at_s = self._said_at_s.get(seat.name, -BEAT_S)
        if is_idle and now_s - said_at_s < BEAT_S:
            return False
        self._said_at_s[seat.name] = now_s if is_idle else -BEAT_S
        return True

    def _pool_load(self, dc: str) -> LoadEvent:
        places = self._places
        pool = places.pools[dc]
        return LoadEvent(
            worker=pool.worker,
            epoch=Epoch(1),
            running=0,
            waiting=0,
            kv_usage=0.0,
            speed_tokens_per_s=0.0,
            at_ms=round(places.loop.now_s * 1000),
            links=places.fabric.loads(dc),
            suspects=tuple(places.pools[name].address for name in places.fabric.suspects(dc)),
        )

    def _later(self, dc: str, announcements: list[MembershipEvent], loads: list[LoadEvent]) -> None:
        loop = self._places.loop
        loop.after(self._places.scenario.bus.delay_s, lambda: self._publish(dc, announcements, loads))

    def _publish(self, dc: str, announcements: list[MembershipEvent], loads: list[LoadEvent]) -> None:
        now_s = self._places.loop.now_s
        for ear_dc, listeners in self._listeners.items():
            if ear_dc != dc and self._places.fabric.is_cut(dc, ear_dc):
                continue
            for listener in listeners:
                for announcement in announcements:
                    listener.apply_membership(announcement, now_s)
                for load in loads:
                    listener.apply_load(load, now_s)

    def _place(self) -> None:
        """Tell the index what pools have stored and evicted since the last time."""
        places, apply = self._places, self._placements.apply
        for pool in places.pools.values():
            for event in pool.events():
                places.loop.after(places.scenario.bus.delay_s, partial(apply, event))
        places.loop.after(places.scenario.bus.placements_every_s, self._place)
