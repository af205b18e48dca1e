"""A steady load of prompts that nobody has seen, open loop, and the plan of each from the gateways' logs."""

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.client import CompletionRequest, RequestOutcome, complete
from benchmarks.congestion.judging import Phases, ServedRequests
from benchmarks.prompts import BenchPrompt
from benchmarks.streaming.asking import Bench

OUTPUT_TOKENS = 4


@dataclass(frozen=True)
class SentRequest:
    """One request on its way."""

    request_id: str
    gateway: str
    at_s: float
    answer: "asyncio.Task[RequestOutcome]"


def arrival_times(rate: float, phases: Phases, seed: int) -> Iterator[float]:
    """Yield the seconds at which requests come: a Poisson process, of twice the rate until the load counts.

    So all workers are needed, and measured, before anything is.
    """
    rng, at_s = random.Random(seed), 0.0
    while (at_s := at_s + rng.expovariate(2 * rate if at_s < phases.begin_s else rate)) < phases.end_s:
        yield at_s


class SteadyLoad:
    """Sends to its gateways in turn. Late answers hold nobody up."""

    def __init__(self, bench: Bench, gateways: Sequence[str], num_tokens: int) -> None:
        self._bench = bench
        self._gateways = gateways
        self._num_tokens = num_tokens
        self._asked: list[SentRequest] = []

    async def run(self, rate: float, phases: Phases, seed: int) -> None:
        """Send through all phases. Raises nothing: what failed is seen in the end."""
        begun = time.monotonic()
        for number, at_s in enumerate(arrival_times(rate, phases, seed)):
            await asyncio.sleep(max(0.0, begun + at_s - time.monotonic()))
            self._ask(self._gateways[number % len(self._gateways)], time.monotonic() - begun)
        await asyncio.sleep(max(0.0, begun + phases.end_s - time.monotonic()))

    async def served(self) -> list[ServedRequests]:
        """Wait for all answers; return them with their plans, in order. Raises `RuntimeError` for one that failed."""
        outcomes = [await asked.answer for asked in self._asked]
        if failed := [outcome.error for outcome in outcomes if outcome.error is not None]:
            raise RuntimeError(f"{len(failed)} of {len(outcomes)} requests failed: {failed[0]}")
        plans = {gateway: self._bench.suite.events_by_request(gateway) for gateway in self._gateways}
        return [
            _served(asked, outcome, plans[asked.gateway]) for asked, outcome in zip(self._asked, outcomes, strict=True)
        ]

    def _ask(self, gateway: str, at_s: float) -> None:
        bench, request_id = self._bench, f"load-{len(self._asked)}"
        tokens = bench.new_prompt(self._num_tokens)
        request = CompletionRequest(
            bench.suite.http_url(gateway),
            bench.model,
            BenchPrompt(tokens, len(tokens)),
            OUTPUT_TOKENS,
            request_id=request_id,
        )
        task = asyncio.create_task(complete(bench.session, request), name=request_id)
        self._asked.append(SentRequest(request_id, gateway, at_s, task))


def _served(
    asked: SentRequest, outcome: RequestOutcome, events: dict[tuple[str, str], dict[str, Any]]
) -> ServedRequests:
    plan = events[asked.request_id, "request_planned"]
    return ServedRequests(
        at_s=asked.at_s,
        gateway=asked.gateway,
        kind=plan["kind"],
        prefill=plan["prefill"],
        forecast_s=plan["forecast_ttft_s"],
        ttft_s=outcome.ttft_s,
        is_rescued=(asked.request_id, "rescued") in events,
    )
