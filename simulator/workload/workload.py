"""A workload: arrivals and prompts, spread over datacenters."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

from simulator.workload.arrivals import ArrivalProcess
from simulator.workload.prompts import PromptDraw, PromptSource
from simulator.workload.traces import TracedRequest


class PromptArrival(NamedTuple):
    """A request that reaches a gateway of a datacenter."""

    at_s: float
    dc: str
    prompt: PromptDraw


class RequestSource(Protocol):
    """Requests in order of time."""

    def requests(self, seed: int, block_tokens: int) -> Iterator[PromptArrival]:
        """Yield them, lazily. Equal seeds, equal requests."""


@dataclass(frozen=True, slots=True)
class DrawnRequests:
    """So many requests of an arrival process and a source of prompts. `dcs` are weights."""

    arrivals: ArrivalProcess
    prompts: PromptSource
    dcs: Mapping[str, float]
    num_requests: int

    def requests(self, seed: int, block_tokens: int) -> Iterator[PromptArrival]:
        times = self.arrivals.times(random.Random(f"{seed} arrivals"))
        prompts = self.prompts.prompts(random.Random(f"{seed} prompts"), block_tokens)
        places = _places(self.dcs, seed)
        for at_s, prompt in islice(zip(times, prompts, strict=False), self.num_requests):
            yield PromptArrival(at_s, next(places), prompt)


@dataclass(frozen=True, slots=True)
class TracedRequests:
    """A trace, `speedup` times as fast as recorded. `dcs` are weights. The seed decides the places alone."""

    trace: Sequence[TracedRequest]
    dcs: Mapping[str, float]
    speedup: float = 1.0

    def requests(self, seed: int, block_tokens: int) -> Iterator[PromptArrival]:
        for request, dc in zip(self.trace, _places(self.dcs, seed), strict=False):
            yield PromptArrival(request.at_s / self.speedup, dc, request.prompt)


def _places(dcs: Mapping[str, float], seed: int) -> Iterator[str]:
    draw = random.Random(f"{seed} places")
    names, weights = list(dcs), list(dcs.values())
    while True:
        yield draw.choices(names, weights)[0] if len(names) > 1 else names[0]
