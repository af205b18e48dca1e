"""What is asked of both servers: lengths, how many at once, and which figures have a target."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Figure = Literal["requests_per_s", "tokens_per_s", "ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms"]


@dataclass(frozen=True)
class Workload:
    """A closed loop of `at_once` streams. Prompts are random; with `prefix_tokens`, each stream repeats its own."""

    name: str
    input_tokens: int
    output_tokens: int
    at_once: int
    targets: tuple[Figure, ...]
    prefix_tokens: int = 0


@dataclass(frozen=True)
class Disturbance:
    """`runners` sequences decode while prompts of other lengths arrive at half the rate that can be sustained."""

    name: str
    runners: int
    runner_tokens: int  # that each of them generates
    shortest: int  # of the prompts that arrive
    longest: int
    at_once: int  # of the closed loop that finds the sustainable rate
    most_times_undisturbed: float = 2.0


SHORT_INPUT = 30
WORKLOADS = (
    Workload("short-1", SHORT_INPUT, 1, 1, ("requests_per_s",)),
    Workload("short-16", SHORT_INPUT, 1, 16, ("requests_per_s",)),
    Workload("short-64", SHORT_INPUT, 1, 64, ("requests_per_s",)),
    Workload("cached", 1000, 1, 8, ("requests_per_s",), prefix_tokens=992),
    Workload("answers", 128, 32, 32, ("requests_per_s", "ttft_p50_ms", "ttft_p99_ms")),
    Workload("prompts-512", 512, 64, 4, ("tokens_per_s", "ttft_p50_ms")),
    Workload("prompts-2048", 2048, 64, 4, ("tokens_per_s", "ttft_p50_ms")),
)
DISTURBANCE = Disturbance("arrivals", runners=8, runner_tokens=192, shortest=30, longest=500, at_once=16)
NAMES = (*(workload.name for workload in WORKLOADS), DISTURBANCE.name)

QUICK_INPUT, QUICK_PREFIX, QUICK_OUTPUT, QUICK_AT_ONCE = 200, 192, 8, 4


def in_miniature(workload: Workload) -> Workload:
    """Return a workload that even a slow machine does in seconds."""
    return replace(
        workload,
        input_tokens=min(workload.input_tokens, QUICK_INPUT),
        prefix_tokens=min(workload.prefix_tokens, QUICK_PREFIX),
        output_tokens=min(workload.output_tokens, QUICK_OUTPUT),
        at_once=min(workload.at_once, QUICK_AT_ONCE),
    )


def miniatures(workloads: Iterable[Workload]) -> list[Workload]:
    """Return workloads in miniature: of those that are alike then, the first."""
    kinds: dict[Workload, Workload] = {}
    for small in map(in_miniature, workloads):
        kinds.setdefault(replace(small, name="", targets=()), small)
    return list(kinds.values())


QUICK_DISTURBANCE = replace(DISTURBANCE, runners=2, runner_tokens=32, longest=QUICK_INPUT, at_once=2)
