"""What requests of this gateway were like: lengths, rates, crossings, and how right forecasts were. O(1) a request."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from services.gateway.control.forecasts import ForecastErrors, RatioQuantiles
from services.gateway.routing.plan import LinkUse, Plan, PlanKind
from shared.ids import Datacenter
from shared.measuring.rates import RecentRate

KEPT_REQUESTS = 4096
"""The latest so many requests are what lengths are told from: hours of a quiet service, minutes of a busy one."""

RATE_MEMORY_S = 60.0
"""A minute: the long timescale follows the hour's trend, not a burst, which routing answers within seconds."""

KINDS: tuple[PlanKind, ...] = ("none", "local", "remote", "decode_only")

Direction = tuple[Datacenter, Datacenter]
"""From where to where."""

NOTHING: NDArray[np.float64] = np.zeros(0)


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """What was seen until now: a copy that nobody changes."""

    prompt_tokens: NDArray[np.float64] = field(default_factory=lambda: NOTHING)  # [n], of the latest requests
    uncached_tokens: NDArray[np.float64] = field(default_factory=lambda: NOTHING)  # [n], of the same
    output_tokens: NDArray[np.float64] = field(default_factory=lambda: NOTHING)  # [m], of the latest answers
    requests_per_s: float = 0.0
    kinds: Mapping[PlanKind, int] = field(default_factory=lambda: MappingProxyType({}))  # of the same n requests
    crossing_bytes_per_s: Mapping[Direction, float] = field(
        default_factory=lambda: MappingProxyType({})
    )  # before any codec
    forecasts: Mapping[str, RatioQuantiles] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def num_requests(self) -> int:
        return len(self.prompt_tokens)


class _Ring:
    """The latest so many numbers."""

    def __init__(self, size: int) -> None:
        self._values = np.zeros(size)
        self._num_added = 0

    def add(self, value: float) -> None:
        self._values[self._num_added % len(self._values)] = value
        self._num_added += 1

    def copy(self) -> NDArray[np.float64]:
        """Return them in no order that matters."""
        return self._values[: self._num_added].copy()


class Observations:
    """Takes note of every request that is sent to workers. Belongs to the event loop; its memory is bounded."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, kept_requests: int = KEPT_REQUESTS) -> None:
        self._clock = clock
        self._prompt_tokens, self._uncached_tokens, self._output_tokens, self._kinds = (
            _Ring(kept_requests) for _ in range(4)
        )
        self._arrivals = RecentRate(clock, RATE_MEMORY_S)
        self._crossings: dict[Direction, RecentRate] = {}  # at most one for each pair of datacenters
        self._forecasts = ForecastErrors()

    def sent(self, plan: Plan, num_tokens: int, num_uncached: int, *, is_first: bool = True) -> None:
        """Note a request that is sent now. `is_first` is False for the rest of one that has lost a worker."""
        if is_first:
            self._prompt_tokens.add(num_tokens)
            self._uncached_tokens.add(max(1, num_uncached))  # decode computes a token of every prompt
            self._kinds.add(KINDS.index(plan.kind))
            self._arrivals.add()
        for use in plan.forecast.crossings:
            self._crossing(use).add(use.num_bytes)

    def first_token(self, plan: Plan, ttft_s: float) -> None:
        """Note that the first token of a plan has come, so long after the plan was made."""
        self._forecasts.add(plan.kind, plan.forecast.ttft_s, ttft_s)

    def ended(self, num_output_tokens: int) -> None:
        """Note the length of an answer, or of the part of one that a worker gave."""
        if num_output_tokens:
            self._output_tokens.add(num_output_tokens)

    def seen(self) -> Observed:
        """Return what was seen until now."""
        kinds = np.bincount(self._kinds.copy().astype(np.intp), minlength=len(KINDS)).tolist()
        return Observed(
            prompt_tokens=self._prompt_tokens.copy(),
            uncached_tokens=self._uncached_tokens.copy(),
            output_tokens=self._output_tokens.copy(),
            requests_per_s=self._arrivals.per_s,
            kinds=dict(zip(KINDS, kinds, strict=True)),
            crossing_bytes_per_s={way: rate.per_s for way, rate in self._crossings.items()},
            forecasts=self._forecasts.quantiles(),
        )

    def _crossing(self, use: LinkUse) -> RecentRate:
        way = (use.source, use.target)
        if way not in self._crossings:
            self._crossings[way] = RecentRate(self._clock, RATE_MEMORY_S)
        return self._crossings[way]
