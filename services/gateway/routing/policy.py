"""The seam of routing: a policy decides which workers serve a request; all else follows from facts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.gateway.routing.facts import Facts
from services.gateway.routing.plan import ComparedWay, Forecast
from shared.ids import Datacenter


@dataclass(frozen=True, slots=True)
class Decision:
    """Which workers serve a request, as rows of `facts.decode` and `facts.prefill`."""

    decode: int
    prefill: Sequence[int] = ()  # the best first; none: decode computes what no cache has
    pull_from: frozenset[Datacenter] | None = None  # whose cached blocks are used besides home's; None: everybody's
    forecast: Forecast | None = None  # if the policy has made one
    ways: tuple[ComparedWay, ...] = ()  # some of those that it has compared, the cheapest first


class RoutingPolicy(Protocol):
    """Pure: the answer depends on the facts alone, so that a simulator can ask too."""

    def decide(self, facts: Facts) -> Decision:
        """Return who serves the request.

        The plan is for the first of `prefill`; the others of its datacenter take over, in this order, when it is lost.
        When nothing is left to prefill, whom the policy would have chosen for it does not matter.
        """


def least_loaded(facts: Facts) -> int:
    """Return the row of the decode worker with the fewest requests."""
    return int(np.argmin(facts.decode.rows["requests"]))


def ranked(*merits: NDArray[np.generic]) -> list[int]:
    """Return rows in order: the least of the first merit first, of equals the least of the second, and so on."""
    order: list[int] = np.lexsort(merits[::-1]).tolist()
    return order


def turn(num_rows: int, first: int) -> NDArray[np.intp]:
    """Return each row's turn when row `first` is the first one: a merit by which equal rows are taken in rotation."""
    return (np.arange(num_rows) - first) % max(1, num_rows)


def drawn(draw: float, num_choices: int) -> tuple[int, float]:
    """Return one of so many choices, and what is left of the draw for the next: a number of [0, 1) again."""
    scaled = draw * num_choices
    return int(scaled), scaled % 1.0
