"""The two tenants: one that asks, reads, pauses and asks again, and one that floods."""

import asyncio
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

import aiohttp

from benchmarks.client import CompletionRequest, RequestOutcome, complete
from benchmarks.fairness.cpu import CpuHistory, recorded
from benchmarks.fairness.engines import StepsRun, WatchedEngines
from benchmarks.peers.protocol import Prompts
from benchmarks.prompts import BenchPrompt
from benchmarks.serve import first_model, new_session

VICTIM, FLOODER = "victim", "flooder"
VICTIM_OUTPUT, FLOODER_OUTPUT = 4, 16
"""Tokens of an answer. What comes after the victim's first token is not measured."""

SEED = 1


@dataclass(frozen=True)
class PromptShape:
    """Lengths of prompts, in tokens."""

    victim: int
    flooder: int

    @property
    def name(self) -> str:
        return f"{self.victim} beside {self.flooder}"


@dataclass(frozen=True)
class AskingPace:
    """How the tenants ask."""

    flooders: int = 64  # closed loops
    mean_pause_s: float = 1.0  # of the victim, after each answer; exponential
    ramp_s: float = 4.0  # of the flood, before the victim begins
    settle_s: float = 1.0  # after the flood, which is cut off
    limit_s: float = 300.0  # of one answer


@dataclass
class FairnessTurn:
    """What both were answered while the victim asked; `seconds` long."""

    seconds: float
    victim: list[RequestOutcome]
    flooder: list[RequestOutcome] = field(default_factory=list)
    engine_s: list[float] = field(default_factory=list)  # CPU time of its engine until the victim's first token
    between: StepsRun = field(default_factory=StepsRun)  # steps of all engines while the victim pauses

    @property
    def errors(self) -> list[str]:
        return [outcome.error for outcome in (*self.victim, *self.flooder) if outcome.error is not None]

    @property
    def ttfts_s(self) -> list[float]:
        """The victim's times to the first token."""
        return [outcome.ttft_s for outcome in self.victim if outcome.error is None]


@dataclass(frozen=True)
class _Asked:
    """One request of the victim, and the CPU time that engines used meanwhile."""

    request_id: str
    begun_s: float
    outcome: RequestOutcome
    histories: Mapping[str, CpuHistory]

    def engine_s(self, engine: str) -> float:
        """Return the CPU time that an engine used until the first token."""
        return self.histories[engine].between(self.begun_s, self.begun_s + self.outcome.ttft_s)


class FairnessTenants:
    """Ask one suite. No prompt comes twice."""

    def __init__(self, url: str, pace: AskingPace, engines: WatchedEngines) -> None:
        self.pace = pace
        self._engines = engines
        self._url = url
        self._prompts = Prompts(SEED)
        self._pauses = random.Random(SEED)
        self._num_asked = 0

    def turn(self, shape: PromptShape, num_asked: int, flooder: str | None) -> FairnessTurn:
        """Let the victim ask so many times, beside a flood on account of `flooder`."""
        return asyncio.run(self._turn(shape, num_asked, flooder))

    async def _turn(self, shape: PromptShape, num_asked: int, flooder: str | None) -> FairnessTurn:
        async with new_session() as session:
            model = await first_model(session, self._url)
            flooded: list[RequestOutcome] = []
            loops = [] if flooder is None else self._start_flood(session, model, shape.flooder, flooder, flooded)
            if loops:
                await asyncio.sleep(self.pace.ramp_s)
            flooded.clear()
            started = time.perf_counter()
            turn, asked = FairnessTurn(0.0, []), []
            for _ in range(num_asked):
                before = await self._engines.steps()
                await asyncio.sleep(self._pauses.expovariate(1 / self.pace.mean_pause_s))
                turn.between += await self._engines.steps() - before
                asked.append(await self._ask_as_victim(session, model, shape.victim))
            turn.seconds = time.perf_counter() - started
            turn.flooder = list(flooded)
            await _cancel(loops)
        turn.victim = [ask.outcome for ask in asked]
        planned = self._engines.by_request()
        turn.engine_s = [ask.engine_s(planned[ask.request_id]) for ask in asked if ask.outcome.error is None]
        if loops:
            await asyncio.sleep(self.pace.settle_s)
        return turn

    async def _ask_as_victim(self, session: aiohttp.ClientSession, model: str, num_tokens: int) -> "_Asked":
        self._num_asked += 1
        request_id = f"{VICTIM}-{self._num_asked}"
        async with recorded(self._engines.cpu_s) as histories:
            begun_s = time.perf_counter()
            request = replace(self._request(model, num_tokens, VICTIM, VICTIM_OUTPUT), request_id=request_id)
            outcome = await self._complete(session, request)
        return _Asked(request_id, begun_s, outcome, histories)

    def _start_flood(
        self, session: aiohttp.ClientSession, model: str, num_tokens: int, salt: str, outcomes: list[RequestOutcome]
    ) -> list["asyncio.Task[None]"]:
        async def loop() -> None:
            while True:
                request = self._request(model, num_tokens, salt, FLOODER_OUTPUT)
                outcomes.append(await self._complete(session, request))

        return [asyncio.create_task(loop()) for _ in range(self.pace.flooders)]

    def _request(self, model: str, num_tokens: int, salt: str, output_tokens: int) -> CompletionRequest:
        prompt = BenchPrompt(self._prompts.draw(num_tokens), num_tokens)
        return CompletionRequest(self._url, model, prompt, output_tokens, salt=salt)

    async def _complete(self, session: aiohttp.ClientSession, request: CompletionRequest) -> RequestOutcome:
        async with asyncio.timeout(self.pace.limit_s):
            return await complete(session, request)


async def _cancel(tasks: list["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task
