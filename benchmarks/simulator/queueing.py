"""Prefill workers and links against what queueing theory says of them: M/D/1, M/G/1 and M/G/1-PS."""

import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from benchmarks.harness import Check, Row, at_most
from shared.step_profile import StepProfile
from simulator.engines.prefill import SimulatedPrefill
from simulator.engines.work import PromptJob
from simulator.events import EventLoop
from simulator.network.links import LinkSpec, SharedLink
from simulator.workload.arrivals import PoissonArrivals

TOKEN_S = 1e-3
LIMIT_PERCENT = 2.0
LOADS = (0.3, 0.6, 0.8)
STUDENT_95 = {3: 4.303, 5: 2.776, 8: 2.365}
"""Quantiles of Student's t for a two-sided interval of 95 %, by the number of seeds."""


@dataclass(frozen=True)
class ServiceTimes:
    """Prompts of a few sizes, so that all moments are exact."""

    tokens: tuple[int, ...]
    weights: tuple[float, ...]  # add up to 1

    def sample(self, draw: random.Random) -> int:
        return draw.choices(self.tokens, self.weights)[0]

    def moment_s(self, power: int) -> float:
        """Return E[S^power] of the service time in seconds."""
        terms = zip(self.tokens, self.weights, strict=True)
        return sum(weight * (TOKEN_S * tokens) ** power for tokens, weight in terms)


CONSTANT = ServiceTimes((400,), (1.0,))
MIXED = ServiceTimes((200, 2_000), (0.85, 0.15))  # a squared coefficient of variation of 1.9


@dataclass(frozen=True)
class QueueCase:
    """A queue of which theory knows a mean."""

    name: str
    service: ServiceTimes
    measure: Callable[[ServiceTimes, random.Random, float, int], float]  # of so many arrivals at a rate
    expect: Callable[[ServiceTimes, float], float]  # at a rate


def pollaczek_khinchine_s(service: ServiceTimes, rate: float) -> float:
    """Return the mean wait of M/G/1, first come first served: rate E[S^2] / (2 (1 - load))."""
    return rate * service.moment_s(2) / (2 * (1 - rate * service.moment_s(1)))


def processor_sharing_s(service: ServiceTimes, rate: float) -> float:
    """Return the mean sojourn of M/G/1-PS, which depends on the mean service alone: E[S] / (1 - load)."""
    return service.moment_s(1) / (1 - rate * service.moment_s(1))


def mean_wait_s(service: ServiceTimes, draw: random.Random, rate: float, num_requests: int) -> float:
    """Return the mean time from arrival to the first step, on a prefill worker that takes one prompt after another."""
    loop = EventLoop()
    worker = SimulatedPrefill(loop, StepProfile(0.0, TOKEN_S), step_tokens=max(service.tokens), prompts_per_step=1)
    waits: list[float] = []

    def arrive() -> None:
        arrived_s = loop.now_s

        def opened() -> int:
            waits.append(loop.now_s - arrived_s)
            return 0

        worker.add(PromptJob(service.sample(draw), opened, lambda: None))

    _run(loop, islice(PoissonArrivals(rate).times(draw), num_requests), arrive)
    return statistics.fmean(waits)


def mean_sojourn_s(service: ServiceTimes, draw: random.Random, rate: float, num_requests: int) -> float:
    """Return the mean time of a transfer on a link that all share."""
    loop = EventLoop()
    link = SharedLink(LinkSpec("a", "b", bytes_per_s=1 / TOKEN_S), loop, "")
    times: list[float] = []

    def arrive() -> None:
        arrived_s = loop.now_s
        transfer = link.open(lambda: times.append(loop.now_s - arrived_s))
        transfer.offer(service.sample(draw))
        transfer.close()

    _run(loop, islice(PoissonArrivals(rate).times(draw), num_requests), arrive)
    return statistics.fmean(times)


def _run(loop: EventLoop, times: Iterator[float], arrive: Callable[[], None]) -> None:
    def at_next() -> None:
        at_s = next(times, None)
        if at_s is not None:
            loop.at(at_s, arrived)

    def arrived() -> None:
        arrive()
        at_next()

    at_next()
    loop.run()


CASES = (
    QueueCase("M/D/1 wait", CONSTANT, mean_wait_s, pollaczek_khinchine_s),
    QueueCase("M/G/1 wait", MIXED, mean_wait_s, pollaczek_khinchine_s),
    QueueCase("M/G/1-PS sojourn", MIXED, mean_sojourn_s, processor_sharing_s),
)


@dataclass(frozen=True)
class QueueFinding:
    """A mean over seeds beside the theory's."""

    case: QueueCase
    load: float
    expected_s: float
    measured_s: float
    half_width_s: float  # of the interval of 95 % over the seeds

    @property
    def error_percent(self) -> float:
        return 100 * abs(self.measured_s - self.expected_s) / self.expected_s

    @property
    def row(self) -> Row:
        return {
            "queue": self.case.name,
            "load": self.load,
            "theory_s": round(self.expected_s, 5),
            "simulated_s": round(self.measured_s, 5),
            "interval_95_s": round(self.half_width_s, 5),
            "error_%": round(self.error_percent, 2),
        }

    def check(self, limit_percent: float) -> Check:
        return at_most(f"{self.case.name} at load {self.load}: error", self.error_percent, limit_percent, "%")


def find(case: QueueCase, load: float, seeds: Sequence[int], num_requests: int) -> QueueFinding:
    """Measure a case at a load, `num_requests` with each seed."""
    rate = load / case.service.moment_s(1)
    means = [case.measure(case.service, random.Random(seed), rate, num_requests) for seed in seeds]
    half = STUDENT_95[len(means)] * statistics.stdev(means) / math.sqrt(len(means))
    return QueueFinding(case, load, case.expect(case.service, rate), statistics.fmean(means), half)
