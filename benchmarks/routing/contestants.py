"""Who is compared, and over which grid of parameters each rival is tuned."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from benchmarks.routing.cases import RoutingCase
from services.gateway.routing.policies import POLICIES
from services.gateway.routing.policy import RoutingPolicy

Options = Mapping[str, Any]
OURS, PAPERS = "cost", "threshold"


@dataclass(frozen=True)
class PolicyContestant:
    """A policy by its name, and the values of its options that the search tries: all combinations."""

    name: str
    grid: Callable[[RoutingCase], Mapping[str, tuple[Any, ...]]] = lambda _case: {}

    def candidates(self, case: RoutingCase) -> list[Options]:
        """Return the options to try in a case; one set of them: nothing to search."""
        grid = self.grid(case)
        return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def policy(name: str, options: Options) -> RoutingPolicy:
    make: Any = POLICIES[name]
    made: RoutingPolicy = make(**options)
    return made


def _threshold(case: RoutingCase) -> Mapping[str, tuple[Any, ...]]:
    tokens = tuple(round(case.threshold_tokens * share) for share in (0.25, 0.5, 0.75, 1.0, 1.5))
    return {"offload_threshold_tokens": tokens} | ({"bandwidth": ("abundant", "scarce")} if case.has_prefixes else {})


def _isl(case: RoutingCase) -> Mapping[str, tuple[Any, ...]]:
    """Conditional disaggregation asks for a cached part: without prefixes its threshold changes nothing."""
    return {"isl_threshold": (2048, 8192)} if case.has_prefixes else {}


def _balancing(case: RoutingCase) -> Mapping[str, tuple[Any, ...]]:
    return {"kvcache_balancing_threshold": (1.2, 2.0, 4.0)} if case.has_prefixes else {}


CONTESTANTS = (
    PolicyContestant(OURS),
    PolicyContestant(PAPERS, _threshold),
    PolicyContestant("dynamo", lambda case: {"prefill_load_scale": (1.0, 4.0), **_isl(case)}),
    PolicyContestant("lmetric", _isl),
    PolicyContestant("llm_d", lambda _case: {"queue_weight": (1.0, 3.0), "non_cached_tokens": (16, 1024)}),
    PolicyContestant("mooncake", _balancing),
    PolicyContestant("gorgo", lambda _case: {"network_weight": (1.0, 10.0)}),
    PolicyContestant("deflection", lambda _case: {"margin": (0.0, 0.3, 0.6)}),
    PolicyContestant("stay_home"),
    PolicyContestant("least_load"),
    PolicyContestant("power_of_two"),
    PolicyContestant("round_robin"),
    PolicyContestant("random"),
)
