"""The links of a scenario, and the loads that the pools at their ends report of them."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from services.cachepool.links.goodput import Goodput
from services.cachepool.peers.suspects import SILENT_S, Suspects
from shared.bus.events import LinkLoad
from shared.ids import Datacenter
from simulator.events import EventLoop
from simulator.network.links import LinkSpec, SharedLink, Transfer
from simulator.outcome import LinkHistory

NEVER_SLOW = 1e15
"""Bytes/s of a link that no scenario names."""


class WatchedTransfer:
    """A transfer whose reader gives up when it does not move for `stall_s`."""

    def __init__(self, transfer: Transfer, on_failed: Callable[[], None]) -> None:
        self.transfer = transfer
        self.on_failed = on_failed
        self.is_over = False

    def abandon(self) -> None:
        """End without a word; idempotent."""
        self.is_over = True
        self.transfer.abandon()


class FabricLink:
    """One link with its samples, its goodput as pools measure it, and what waits on it while it is cut off."""

    def __init__(self, spec: LinkSpec, loop: EventLoop, seed: str, stall_s: float) -> None:
        self.shared = SharedLink(spec, loop, seed)
        self._loop = loop
        self._stall_s = stall_s
        self._goodput = Goodput(lambda: loop.now_s)
        self._open: dict[WatchedTransfer, None] = {}
        self._seen_bytes = self._seen_busy_s = 0.0
        self._sampled_bytes = 0.0
        self._samples: list[tuple[float, float, float]] = []
        self._moved_at_s = loop.now_s
        self._moved_bytes = 0.0
        self._is_watched = False

    def open(self, on_arrived: Callable[[], None], on_failed: Callable[[], None]) -> WatchedTransfer:
        """Begin a transfer. Exactly one of the two is called, unless the crossing is abandoned."""

        def arrived() -> None:
            if not crossing.is_over:
                crossing.is_over = True
                self._open.pop(crossing, None)
                on_arrived()

        crossing = WatchedTransfer(self.shared.open(arrived), on_failed)
        self._open[crossing] = None
        self._watch()
        return crossing

    def load(self) -> LinkLoad:
        """Return what the pool at its end reports: goodput over the time in which there was something to carry."""
        shared = self.shared
        shared.sync()
        busy_s = shared.busy_s - self._seen_busy_s
        if busy_s > 0:
            self._goodput.carried(int(shared.crossed_bytes - self._seen_bytes), busy_s)
        self._seen_bytes, self._seen_busy_s = shared.crossed_bytes, shared.busy_s
        return LinkLoad(
            Datacenter(shared.spec.from_dc),
            self._goodput.bytes_per_s,
            int(shared.backlog_bytes),
            int(shared.crossed_bytes),
            shared.spec.round_trip_s,
        )

    def sample(self, passed_s: float) -> None:
        """Record the use since the last sample."""
        shared = self.shared
        shared.sync()
        rate = (shared.crossed_bytes - self._sampled_bytes) / passed_s
        self._sampled_bytes = shared.crossed_bytes
        self._samples.append((rate, shared.capacity_bytes_per_s, shared.backlog_bytes))

    def use(self) -> LinkHistory:
        table = np.array(self._samples, np.float64).reshape(-1, 3)
        return LinkHistory(table[:, 0], table[:, 1], table[:, 2])

    def _watch(self) -> None:
        """Look again in a quarter of the patience, while there is somebody to look after."""
        if self._is_watched or not self._open:
            return
        self._is_watched = True
        self._loop.after(self._stall_s / 4, self._look)

    def _look(self) -> None:
        self._is_watched = False
        self._open = {crossing: None for crossing in self._open if not crossing.is_over}
        self.shared.sync()
        if self.shared.crossed_bytes > self._moved_bytes or not self.shared.num_flowing:
            self._moved_at_s, self._moved_bytes = self._loop.now_s, self.shared.crossed_bytes
        elif self._loop.now_s - self._moved_at_s >= self._stall_s:
            self._moved_at_s = self._loop.now_s
            failed, self._open = list(self._open), {}
            for crossing in failed:
                crossing.abandon()
            for crossing in failed:
                crossing.on_failed()
        self._watch()


class Fabric:
    """All links by their ends. A pair of datacenters that no link connects has one that is never slow."""

    def __init__(self, specs: Sequence[LinkSpec], loop: EventLoop, seed: int, stall_s: float) -> None:
        self._loop = loop
        self._seed = seed
        self._stall_s = stall_s
        self._links: dict[tuple[str, str], FabricLink] = {}
        self._suspects: dict[str, Suspects] = {}
        for spec in specs:
            self._add(spec)

    def open(
        self, from_dc: str, to_dc: str, on_arrived: Callable[[], None], on_failed: Callable[[], None]
    ) -> WatchedTransfer:
        """Begin a transfer; one that stalls makes its source suspect at its end, as pools have it."""
        link = self._links.get((from_dc, to_dc)) or self._add(LinkSpec(from_dc, to_dc, NEVER_SLOW))

        def failed() -> None:
            self._suspects_of(to_dc).accuse(from_dc, SILENT_S)
            on_failed()

        return link.open(on_arrived, failed)

    def ask_s(self, from_dc: str, to_dc: str) -> float:
        """Return how long a question to `from_dc` takes, before bytes can flow from there."""
        link = self._links.get((from_dc, to_dc))
        return link.shared.spec.round_trip_s / 2 if link else 0.0

    def is_cut(self, from_dc: str, to_dc: str) -> bool:
        """Return whether the link carries nothing at all."""
        link = self._links.get((from_dc, to_dc))
        return link is not None and link.shared.capacity_bytes_per_s <= 0

    def loads(self, to_dc: str) -> tuple[LinkLoad, ...]:
        """Return what the pool of a datacenter reports of the links that end there."""
        return tuple(link.load() for (_, end), link in self._links.items() if end == to_dc)

    def suspects(self, dc: str) -> tuple[str, ...]:
        """Return the datacenters from which the pool of `dc` pulls nothing at present."""
        return self._suspects_of(dc).addresses()

    def sample(self, passed_s: float) -> None:
        for link in self._links.values():
            link.sample(passed_s)

    def uses(self) -> Mapping[tuple[str, str], LinkHistory]:
        return {ends: link.use() for ends, link in self._links.items()}

    def crossed_bytes(self) -> Mapping[tuple[str, str], float]:
        return {ends: link.shared.crossed_bytes for ends, link in self._links.items()}

    def _add(self, spec: LinkSpec) -> FabricLink:
        name = f"{self._seed} {spec.from_dc} {spec.to_dc}"
        link = self._links[spec.from_dc, spec.to_dc] = FabricLink(spec, self._loop, name, self._stall_s)
        return link

    def _suspects_of(self, dc: str) -> Suspects:
        return self._suspects.setdefault(dc, Suspects(lambda: self._loop.now_s))
