"""The links of a scenario by their ends, and what the pools at their ends report of them."""

from collections.abc import Callable, Mapping, Sequence

from services.cachepool.peers.suspects import SILENT_S, Suspects
from shared.bus.events import LinkLoad
from simulator.events import EventLoop
from simulator.network.links import LinkSpec
from simulator.network.watched import WatchedLink, WatchedTransfer
from simulator.outcome import LinkHistory

NEVER_SLOW = 1e15
"""Bytes/s of a link that no scenario names."""


class Fabric:
    """All links by their ends. A pair of datacenters that no link connects has one that is never slow."""

    def __init__(self, specs: Sequence[LinkSpec], loop: EventLoop, seed: int, stall_s: float) -> None:
        self.on_news: Callable[[str], None] = lambda _dc: None
        self._loop = loop
        self._seed = seed
        self._stall_s = stall_s
        self._links: dict[tuple[str, str], WatchedLink] = {}
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
        """Return what the pool of a datacenter reports of the links that end there and were pulled over."""
        return tuple(link.load() for (_, end), link in self._links.items() if end == to_dc and link.was_used)

    def suspects(self, dc: str) -> tuple[str, ...]:
        """Return the datacenters from which the pool of `dc` pulls nothing at present."""
        return self._suspects_of(dc).addresses()

    def sample(self, passed_s: float) -> None:
        for link in self._links.values():
            link.sample(passed_s)

    def histories(self) -> Mapping[tuple[str, str], LinkHistory]:
        return {ends: link.history() for ends, link in self._links.items()}

    def crossed_bytes(self) -> Mapping[tuple[str, str], float]:
        return {ends: link.shared.crossed_bytes for ends, link in self._links.items()}

    def _add(self, spec: LinkSpec) -> WatchedLink:
        name, to_dc = f"{self._seed} {spec.from_dc} {spec.to_dc}", spec.to_dc
        link = WatchedLink(spec, self._loop, name, self._stall_s, lambda: self.on_news(to_dc))
        self._links[spec.from_dc, to_dc] = link
        return link

    def _suspects_of(self, dc: str) -> Suspects:
        return self._suspects.setdefault(dc, Suspects(lambda: self._loop.now_s))
