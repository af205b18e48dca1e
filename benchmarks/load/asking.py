"""The client's side of a turn: closed loops, and prompts that arrive beside running sequences."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp

from benchmarks.client import CompletionRequest, RequestOutcome, complete
from benchmarks.load.workloads import Disturbance, Workload
from benchmarks.peers.protocol import Prompts
from benchmarks.prompts import BenchPrompt
from benchmarks.serve import arrivals

MORE_THAN_ARRIVE = 1_000_000
SEED = 1


@dataclass
class Answers:
    """What a turn's requests got, and the seconds from the first one's start to the last one's end."""

    outcomes: list[RequestOutcome]
    seconds: float
    beside: list[RequestOutcome] = field(default_factory=list)  # asked at the same time, for the sake of the others
    failures: list[str] = field(default_factory=list)  # of the turn as a whole

    @property
    def errors(self) -> list[str]:
        asked = (*self.outcomes, *self.beside)
        return [*self.failures, *(outcome.error for outcome in asked if outcome.error is not None)]


class Asking:
    """Asks one server. Every prompt is new, and the same for each server: the drawing goes on from turn to turn."""

    def __init__(self, url: str, model: str) -> None:
        self.url = url
        self._model = model
        self._prompts = Prompts(SEED)
        self._prefixes: list[list[int]] = []

    async def warm(self, session: aiohttp.ClientSession, workload: Workload, seconds: float) -> Answers:
        """Have each stream's prefix computed, if it has one, and ask for a while."""
        if workload.prefix_tokens:
            self._prefixes = self._prompts.several(workload.at_once, workload.prefix_tokens)
        first = await _loops(lambda stream: self._ask(session, self._drawn(workload, stream), 1), workload.at_once, 0.0)
        then = await self.closed_loop(session, workload, seconds)
        return Answers([*first.outcomes, *then.outcomes], first.seconds + then.seconds)

    async def closed_loop(self, session: aiohttp.ClientSession, workload: Workload, seconds: float) -> Answers:
        """Ask in `at_once` streams. No request starts after `seconds`; those in flight are answered and counted."""
        return await _loops(
            lambda stream: self._ask(session, self._drawn(workload, stream), workload.output_tokens),
            workload.at_once,
            seconds,
        )

    async def saturated(self, session: aiohttp.ClientSession, disturbance: Disturbance, seconds: float) -> Answers:
        """Ask for prompts in a closed loop while the runners decode."""
        running, arriving = await asyncio.gather(
            _loops(lambda _: self._run(session, disturbance), disturbance.runners, seconds),
            _loops(lambda _: self._arrive(session, disturbance), disturbance.at_once, seconds),
        )
        return Answers(arriving.outcomes, arriving.seconds, beside=running.outcomes)

    async def disturbed(self, session: aiohttp.ClientSession, disturbance: Disturbance, rate: float) -> Answers:
        """Run each runner once, while prompts arrive at `rate` per second; with a rate of 0 nothing disturbs them."""
        arriving: set[asyncio.Task[RequestOutcome]] = set()

        async def arrive() -> None:
            async for _ in arrivals(MORE_THAN_ARRIVE, rate, SEED):
                arriving.add(asyncio.create_task(self._arrive(session, disturbance)))

        arrival = asyncio.create_task(arrive()) if rate else None
        started = time.perf_counter()
        outcomes = await asyncio.gather(*(self._run(session, disturbance) for _ in range(disturbance.runners)))
        seconds = time.perf_counter() - started
        if arrival is not None:
            arrival.cancel()
        return Answers(list(outcomes), seconds, beside=list(await asyncio.gather(*arriving)))

    async def _run(self, session: aiohttp.ClientSession, disturbance: Disturbance) -> RequestOutcome:
        return await self._ask(session, self._prompts.draw(disturbance.shortest), disturbance.runner_tokens)

    async def _arrive(self, session: aiohttp.ClientSession, disturbance: Disturbance) -> RequestOutcome:
        return await self._ask(session, self._prompts.between(disturbance.shortest, disturbance.longest), 1)

    def _drawn(self, workload: Workload, stream: int) -> list[int]:
        prefix = self._prefixes[stream] if workload.prefix_tokens else []
        return prefix + self._prompts.draw(workload.input_tokens - len(prefix))

    async def _ask(self, session: aiohttp.ClientSession, prompt: list[int], output_tokens: int) -> RequestOutcome:
        content = BenchPrompt(prompt, len(prompt))
        request = CompletionRequest(self.url, self._model, content, output_tokens, stream=output_tokens > 1)
        outcome = await complete(session, request)
        if outcome.error is None and outcome.output_tokens != output_tokens:
            outcome.error = f"{outcome.output_tokens} tokens instead of {output_tokens}"
        return outcome


async def _loops(one: Callable[[int], Awaitable[RequestOutcome]], at_once: int, seconds: float) -> Answers:
    """Ask at least once in each stream."""
    outcomes: list[RequestOutcome] = []
    started = time.perf_counter()

    async def loop(stream: int) -> None:
        outcomes.append(await one(stream))
        while time.perf_counter() - started < seconds:
            outcomes.append(await one(stream))

    await asyncio.gather(*(loop(stream) for stream in range(at_once)))
    return Answers(outcomes, time.perf_counter() - started)
