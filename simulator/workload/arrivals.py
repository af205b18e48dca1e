"""Arrival processes: the times at which requests come, without end unless they are given."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


class ArrivalProcess(Protocol):
    """Times in seconds, ascending."""

    def times(self, draw: random.Random) -> Iterator[float]:
        """Yield them, lazily."""


@dataclass(frozen=True, slots=True)
class PoissonArrivals:
    """Independent arrivals at a constant rate."""

    per_s: float

    def times(self, draw: random.Random) -> Iterator[float]:
        at_s = 0.0
        while True:
            at_s += draw.expovariate(self.per_s)
            yield at_s


@dataclass(frozen=True, slots=True)
class BurstArrivals:
    """A Poisson process whose rate a two-state Markov chain sets (MMPP-2): quiet or in a burst.

    In a burst the rate is `burst_factor` times the mean. `burst_share` of the time is spent in bursts, which last
    `burst_s` on average; both durations are exponential.
    """

    mean_per_s: float
    burst_factor: float = 3.0
    burst_share: float = 0.2
    burst_s: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.burst_share < 1 or self.burst_factor * self.burst_share >= 1:
            raise ValueError("bursts must leave some arrivals for the time between them")

    @property
    def quiet_per_s(self) -> float:
        return self.mean_per_s * (1 - self.burst_factor * self.burst_share) / (1 - self.burst_share)

    def times(self, draw: random.Random) -> Iterator[float]:
        quiet_s = self.burst_s * (1 - self.burst_share) / self.burst_share
        now_s, in_burst = 0.0, draw.random() < self.burst_share
        while True:
            end_s = now_s + draw.expovariate(1 / (self.burst_s if in_burst else quiet_s))
            per_s = self.mean_per_s * self.burst_factor if in_burst else self.quiet_per_s
            at_s = now_s + draw.expovariate(per_s)
            while at_s < end_s:
                yield at_s
                at_s += draw.expovariate(per_s)
            now_s, in_burst = end_s, not in_burst


@dataclass(frozen=True, slots=True)
class SteppedArrivals:
    """A Poisson process whose rate changes at known times."""

    rates: Sequence[tuple[float, float]]  # (from_s, per_s), the first from 0, ascending

    def times(self, draw: random.Random) -> Iterator[float]:
        ends = [from_s for from_s, _ in self.rates[1:]] + [math.inf]
        for (now_s, per_s), end_s in zip(self.rates, ends, strict=True):
            if per_s <= 0:
                continue
            at_s = now_s + draw.expovariate(per_s)
            while at_s < end_s:
                yield at_s
                at_s += draw.expovariate(per_s)


@dataclass(frozen=True, slots=True)
class GivenArrivals:
    """Times that are known."""

    at_s: Sequence[float]

    def times(self, draw: random.Random) -> Iterator[float]:
        return iter(self.at_s)
