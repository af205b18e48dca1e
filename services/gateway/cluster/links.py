"""The links between datacenters as their receiving pools report them, and what this gateway has sent for since."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.bus.events import LinkLoad
from shared.ids import Datacenter

FORGOTTEN_AFTER_S = 10.0
"""Pools report every half second; one that is silent for so long will not report on what was sent before."""


class LinkReports(NamedTuple):
    """What one pool node says of its links."""

    dc: Datacenter
    links: Sequence[LinkLoad]


@dataclass(frozen=True, slots=True, eq=False)
class Links:
    """From each datacenter to each: `[from, to]` by their numbers. The receiving pool's nodes together."""

    goodput_bytes_per_s: NDArray[np.float64]  # 0: not known
    backlog_bytes: NDArray[np.float64]  # asked for and not there yet, of KV
    round_trip_s: NDArray[np.float64]  # 0: not known

    @classmethod
    def unknown(cls, num_dcs: int) -> "Links":
        """Return links of which nothing is known."""
        return cls(*(np.zeros((num_dcs, num_dcs)) for _ in range(3)))

    @classmethod
    def reported(cls, dcs: Sequence[Datacenter], pools: Iterable[LinkReports]) -> "Links":
        """Return what these nodes have reported."""
        links, numbers = cls.unknown(len(dcs)), {dc: number for number, dc in enumerate(dcs)}
        for pool in pools:
            for link in pool.links:
                if link.peer_dc in numbers and pool.dc in numbers:
                    links._add(numbers[link.peer_dc], numbers[pool.dc], link)
        return links

    def _add(self, source: int, target: int, link: LinkLoad) -> None:
        self.goodput_bytes_per_s[source, target] += link.goodput_bytes_per_s
        self.backlog_bytes[source, target] += link.backlog_bytes
        self.round_trip_s[source, target] = max(self.round_trip_s[source, target], link.round_trip_s)


class UnreportedCrossing(NamedTuple):
    """KV that a plan of this gateway lets cross a link."""

    at: float
    source: int
    target: int
    num_bytes: float


class UnreportedCrossings:
    """What this gateway's plans have asked links for lately: reports do not show it yet."""

    def __init__(self) -> None:
        self._crossings: list[UnreportedCrossing] = []

    def __len__(self) -> int:
        return len(self._crossings)

    def add(self, crossing: UnreportedCrossing) -> None:
        """Note a crossing. Those that no pool has reported for long are forgotten: its datacenter may have none."""
        oldest = crossing.at - FORGOTTEN_AFTER_S
        self._crossings = [c for c in self._crossings if c.at > oldest]
        self._crossings.append(crossing)

    def reported(self, target: int, until: float) -> None:
        """A report of a pool at `target` has come that knows of what was sent until then."""
        if self._crossings:
            self._crossings = [c for c in self._crossings if c.target != target or c.at > until]

    def add_to(self, backlog_bytes: NDArray[np.float64]) -> None:
        for crossing in self._crossings:
            backlog_bytes[crossing.source, crossing.target] += crossing.num_bytes
