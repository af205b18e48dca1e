"""What a run of congestion shows. Pure: requests with their plans in, figures out."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from statistics import median

import numpy as np

MOVED = 0.5
"""Part of the former share of plans over the link below which routing has moved, and above which it has returned. A
slow link still carries what would wait longer elsewhere."""

WINDOW_S = 10.0
"""A side is where most plans of a window go; to change sides is a switch."""


@dataclass(frozen=True, slots=True)
class ServedRequests:
    """One request, and the plan that it was served by."""

    at_s: float  # since the load began
    gateway: str
    kind: str
    prefill: str | None
    forecast_s: float
    ttft_s: float
    is_rescued: bool = False  # decode computed what came too late

    @property
    def crosses(self) -> bool:
        """Whether its blocks were to come over the link."""
        return self.kind == "remote"


@dataclass(frozen=True, slots=True)
class Phases:
    """When the link falls, and when it comes back, in seconds of the load."""

    begin_s: float  # what came before is warming up
    slow_s: float
    back_s: float
    end_s: float

    def of(self, served: Sequence[ServedRequests], name: str) -> list[ServedRequests]:
        """Return the requests that came in one phase: before, slow or after."""
        first, end = {
            "before": (self.begin_s, self.slow_s),
            "slow": (self.slow_s, self.back_s),
            "after": (self.back_s, self.end_s),
        }[name]
        return [one for one in served if first <= one.at_s < end]


def share(served: Sequence[ServedRequests]) -> float:
    """Return the part of the plans that go over the link."""
    return sum(one.crosses for one in served) / len(served) if served else 0.0


def ttft_percentile(served: Sequence[ServedRequests], percent: float) -> float:
    return float(np.percentile([one.ttft_s for one in served], percent)) if served else float("nan")


def moved_after_s(slow: Sequence[ServedRequests], slow_s: float, former: float) -> float:
    """Return how long after the fall a plan stays home, and most of the former do from then on; infinite: never."""
    for number, one in enumerate(slow):
        if not one.crosses and share(slow[number:]) < MOVED * former:
            return one.at_s - slow_s
    return float("inf")


def last_before_moving_s(slow: Sequence[ServedRequests], slow_s: float) -> float:
    """Return how long after the fall the last plan crosses before one stays home; 0: none does."""
    last_s = 0.0
    for one in slow:
        if not one.crosses:
            break
        last_s = one.at_s - slow_s
    return last_s


def returned_after_s(after: Sequence[ServedRequests], back_s: float, former: float) -> float:
    """Return how long after the link's return a plan crosses it, and most of the former do from then on."""
    for number, one in enumerate(after):
        if one.crosses and share(after[number:]) > MOVED * former:
            return one.at_s - back_s
    return float("inf")


def switches(served: Sequence[ServedRequests]) -> int:
    """Return how often the side changes on which most plans of a window are."""
    windows = [list(group) for _, group in groupby(served, key=lambda one: int(one.at_s // WINDOW_S))]
    sides = [share(window) > 0.5 for window in windows if share(window) != 0.5]
    return sum(a != b for a, b in pairwise(sides))


def forecast_error(served: Sequence[ServedRequests]) -> float:
    """Return by what part the median of forecasts is off the median of what was measured."""
    return abs(median(one.forecast_s for one in served) / median(one.ttft_s for one in served) - 1)
