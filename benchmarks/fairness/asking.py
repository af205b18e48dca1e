"""The two tenants: one that asks, reads and asks again, and one that floods."""

import asyncio
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp

from benchmarks.client import CompletionRequest, RequestOutcome, complete
from benchmarks.peers.protocol import Prompts
from benchmarks.prompts import BenchPrompt
from benchmarks.serve import first_model, new_session

VICTIM, FLOODER = "victim", "flooder"
OUTPUT_TOKENS = 16
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
    ramp_s: float = 8.0  # of the flood, before the victim begins
    limit_s: float = 600.0  # of one answer


@dataclass
class FairnessTurn:
    """What both were answered while the victim asked; `seconds` long."""

    seconds: float
    victim: list[RequestOutcome]
    flooder: list[RequestOutcome] = field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        return [outcome.error for outcome in (*self.victim, *self.flooder) if outcome.error is not None]


class FairnessTenants:
    """Ask one suite. No prompt comes twice."""

    def __init__(self, url: str, pace: AskingPace) -> None:
        self._url = url
        self._pace = pace
        self._prompts = Prompts(SEED)
        self._pauses = random.Random(SEED)

    def turn(self, shape: PromptShape, num_asked: int, seconds: float, flooder: str | None) -> FairnessTurn:
        """Let the victim ask so many times, for so long at most, beside a flood on account of `flooder`."""
        return asyncio.run(self._turn(shape, num_asked, seconds, flooder))

    def flood(self, shape: PromptShape, seconds: float) -> float:
        """Return the requests that a flood alone has answered in a second."""
        return asyncio.run(self._flood_alone(shape, seconds))

    async def _turn(self, shape: PromptShape, num_asked: int, seconds: float, flooder: str | None) -> FairnessTurn:
        async with new_session() as session:
            model = await first_model(session, self._url)
            flooded: list[RequestOutcome] = []
            loops = [] if flooder is None else self._start_flood(session, model, shape.flooder, flooder, flooded)
            if loops:
                await asyncio.sleep(self._pace.ramp_s)
            flooded.clear()
            started = time.perf_counter()
            victim: list[RequestOutcome] = []
            while len(victim) < num_asked and time.perf_counter() - started < seconds:
                victim.append(await self._ask(session, model, shape.victim, VICTIM))
                await asyncio.sleep(self._pauses.expovariate(1 / self._pace.mean_pause_s))
            took_s = time.perf_counter() - started
            answered = list(flooded)
            await _cancel(loops)
        return FairnessTurn(took_s, victim, answered)

    async def _flood_alone(self, shape: PromptShape, seconds: float) -> float:
        async with new_session() as session:
            model = await first_model(session, self._url)
            flooded: list[RequestOutcome] = []
            loops = self._start_flood(session, model, shape.flooder, FLOODER, flooded)
            await asyncio.sleep(self._pace.ramp_s)
            flooded.clear()
            started = time.perf_counter()
            await asyncio.sleep(seconds)
            num_answered, took_s = len(flooded), time.perf_counter() - started
            failed = [outcome.error for outcome in flooded if outcome.error is not None]
            await _cancel(loops)
        if failed:
            raise RuntimeError(f"{len(failed)} requests failed: {failed[0]}")
        return num_answered / took_s

    def _start_flood(
        self, session: aiohttp.ClientSession, model: str, num_tokens: int, salt: str, outcomes: list[RequestOutcome]
    ) -> list["asyncio.Task[None]"]:
        async def loop() -> None:
            while True:
                outcomes.append(await self._ask(session, model, num_tokens, salt))

        return [asyncio.create_task(loop()) for _ in range(self._pace.flooders)]

    async def _ask(self, session: aiohttp.ClientSession, model: str, num_tokens: int, salt: str) -> RequestOutcome:
        prompt = BenchPrompt(self._prompts.draw(num_tokens), num_tokens)
        request = CompletionRequest(self._url, model, prompt, OUTPUT_TOKENS, salt=salt)
        async with asyncio.timeout(self._pace.limit_s):
            return await complete(session, request)


async def _cancel(tasks: list["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task
