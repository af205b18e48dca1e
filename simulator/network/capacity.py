"""How a link's capacity changes over time: constant, by a schedule, or by a seeded process. Pure."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class CapacityStep(NamedTuple):
    """From a time on a link has this share of its nominal capacity; 0: it is cut off."""

    at_s: float
    share: float


class CapacityProcess(Protocol):
    """A capacity over time, as shares of the nominal one."""

    def steps(self, seed: str) -> Iterator[CapacityStep]:
        """Yield the changes in order of time, lazily: there may be no last one. Equal seeds, equal steps."""


@dataclass(frozen=True, slots=True)
class ScheduledCapacity:
    """Changes at known times; before the first one the share is 1."""

    changes: Sequence[tuple[float, float]] = ()  # (at_s, share), ascending

    def __post_init__(self) -> None:
        times = [at_s for at_s, _ in self.changes]
        if times != sorted(times) or any(share < 0 for _, share in self.changes):
            raise ValueError("a schedule of capacity must ascend in time, and no share may be negative")

    def steps(self, seed: str) -> Iterator[CapacityStep]:
        return (CapacityStep(at_s, share) for at_s, share in self.changes)

    @classmethod
    def dip(cls, from_s: float, until_s: float, share: float) -> "ScheduledCapacity":
        """Return a capacity that is lower for a while; `share` 0: a cut-off."""
        return cls(((from_s, share), (until_s, 1.0)))


@dataclass(frozen=True, slots=True)
class FluctuatingCapacity:
    """A first-order autoregressive process in the logarithm of the share, drawn anew every `period_s`.

    The share's median is 1 and ln(share) has the stationary deviation `sigma`; `memory_s` is the time after which the
    correlation has fallen to 1/e. Cross traffic on a WAN is usually modelled so; nothing here is fitted to a network.
    """

    sigma: float
    period_s: float = 1.0
    memory_s: float = 30.0
    most: float = 1.0  # the link's own rate: a share is never above it

    def __post_init__(self) -> None:
        if min(self.sigma, self.period_s, self.memory_s, self.most) <= 0:
            raise ValueError("the parameters of a fluctuating capacity must be positive")

    def steps(self, seed: str) -> Iterator[CapacityStep]:
        draw = random.Random(seed)
        kept = math.exp(-self.period_s / self.memory_s)
        level, number = draw.gauss(0.0, self.sigma), 0
        while True:
            yield CapacityStep(number * self.period_s, min(self.most, math.exp(level)))
            level = kept * level + math.sqrt(1 - kept * kept) * draw.gauss(0.0, self.sigma)
            number += 1


def mathis_bytes_per_s(segment_bytes: float, round_trip_s: float, loss: float) -> float:
    """Return what one TCP connection sustains: MSS / RTT * sqrt(3/2) / sqrt(p); infinity without loss or round trip.

    Mathis, Semke, Mahdavi and Ott, "The macroscopic behavior of the TCP congestion avoidance algorithm", 1997, with
    periodic loss and an acknowledgement for each segment.
    """
    if not 0 <= loss < 1:
        raise ValueError("the share of lost segments must lie from 0 to below 1")
    if loss == 0 or round_trip_s == 0:
        return math.inf
    return segment_bytes / round_trip_s * math.sqrt(1.5 / loss)
