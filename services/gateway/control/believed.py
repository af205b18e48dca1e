"""From which length on routing sends prompts away at present: routing has no threshold, so that it is asked. Pure."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from services.gateway.cluster.view import RegistryView
from services.gateway.control.settled import Settled
from services.gateway.routing.plan import Plan, RequestFacts
from shared.errors import NoWorker
from shared.ids import Datacenter

MakeAnyPlan = Callable[[RequestFacts], Plan]
"""Plans a request for the cluster as it is: see `Router.plan`."""

ProbedTokens = Sequence[int]
"""Prompt lengths that routing is asked about, ascending."""

NUM_PROBES = 32
"""Lengths that are asked for first: from a block to the longest context each is about a quarter longer."""

EXACT_TO = 0.02
"""A threshold is searched until it is known to this part of it."""

SAME_WITHIN = 0.2
"""A threshold that differs by no more than this part is the same one: forecasts err by so much."""

LOOKS_TO_CHANGE = 2
"""Looks in a row that must ask for another threshold before another one is shown: a burst is over by then."""

Thresholds = Mapping[Datacenter, int | None]
"""By the datacenter that prefills: the least uncached length for which it is chosen. None: never."""


def probes(block_tokens: int, max_tokens: int) -> ProbedTokens:
    """Return the lengths to ask routing about, from the first that has a block to hand over."""
    first = block_tokens + 1
    lengths = np.geomspace(first, max(first, max_tokens), NUM_PROBES)
    return sorted({round(length) for length in lengths.tolist()})


def thresholds_of(plan: MakeAnyPlan, view: RegistryView, lengths: ProbedTokens, output_tokens: int) -> Thresholds:
    """Return the least uncached length that each datacenter with prefill workers is chosen for, in the state of now.

    Prompts that no cache knows are planned: the lengths first, then by bisection those before the first that a
    datacenter is chosen for. Empty where nobody can decode.
    """
    asked: dict[int, Datacenter | None] = {}

    def maker(num_tokens: int) -> Datacenter | None:
        if num_tokens not in asked:
            made = plan(RequestFacts(num_tokens, (), output_tokens=output_tokens))
            asked[num_tokens] = None if made.prefill is None else made.prefill.dc
        return asked[num_tokens]

    try:
        makers = [maker(length) for length in lengths]
    except NoWorker:
        return {}
    found: dict[Datacenter, int | None] = {}
    for number in sorted(set(view.prefill.rows["dc"].tolist())):
        dc = view.dcs[number]
        if dc not in makers:
            found[dc] = None
            continue
        at = makers.index(dc)
        found[dc] = _first(lambda length, dc=dc: maker(length) == dc, lengths[max(0, at - 1)], lengths[at])  # type: ignore[misc]
    return found


def _first(is_chosen: Callable[[int], bool], low: int, high: int) -> int:
    """Return the least length above `low` that is chosen, to a part of it; `high` is, `low` may be."""
    if is_chosen(low):
        return low
    while high - low > max(1, EXACT_TO * high):
        middle = (low + high) // 2
        low, high = (low, middle) if is_chosen(middle) else (middle, high)
    return high


def shown_after(shown: Settled[Thresholds], now: Thresholds) -> Settled[Thresholds]:
    """Return the thresholds to show after a look at those of now."""
    if shown.value.keys() != now.keys():  # other datacenters: there is nothing to compare
        return Settled(now)
    is_other = any(_differ(shown.value[dc], now[dc]) for dc in now)
    return shown.after(now, is_other=is_other, looks=LOOKS_TO_CHANGE)


def _differ(old: int | None, new: int | None) -> bool:
    if old is None or new is None:
        return old is not new
    return abs(new - old) > SAME_WITHIN * old
