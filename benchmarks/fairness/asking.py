"""The two tenants: one that asks, reads, pauses and asks again, and one that floods."""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp

from benchmarks.client import CompletionRequest, RequestOutcome, complete
from benchmarks.fairness.cpu import recorded
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
    ramp_s: float = 4.0  # of the flood, before the victim begins
    settle_s: float = 1.0  # after the flood, which is cut off
    limit_s: float = 300.0  # of one answer


@dataclass
class FairnessTurn:
    """What both were answered while the victim asked; `seconds` long."""

    seconds: float
    victim: list[RequestOutcome]
    flooder: list[RequestOutcome] = field(default_factory=list)
    engine_s: list[float] = field(default_factory=list)  # CPU time of the engine until the victim's first token

    @property
    def errors(self) -> list[str]:
        return [outcome.error for outcome in (*self.victim, *self.flooder) if outcome.error is not None]

    @property
    def ttfts_s(self) -> list[float]:
        """The victim's times to the first token."""
        return [outcome.ttft_s for outcome in self.victim if outcome.error is None]


class FairnessTenants:
    """Ask one suite. No prompt comes twice."""

    def __init__(self, url: str, pace: AskingPace, engine_cpu_s: Callable[[], float]) -> None:
        """`engine_cpu_s` returns the CPU time that the engine has used."""
        self.pace = pace
        self._engine_cpu_s = engine_cpu_s
        self._url = url
        self._prompts = Prompts(SEED)
        self._pauses = random.Random(SEED)

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
            turn = FairnessTurn(0.0, [])
            for _ in range(num_asked):
                await asyncio.sleep(self._pauses.expovariate(1 / self.pace.mean_pause_s))
                await self._ask_as_victim(session, model, shape.victim, turn)
            turn.seconds = time.perf_counter() - started
            turn.flooder = list(flooded)
            await _cancel(loops)
        if loops:
            await asyncio.sleep(self.pace.settle_s)
        return turn

    async def _ask_as_victim(
        self, session: aiohttp.ClientSession, model: str, num_tokens: int, turn: FairnessTurn
    ) -> None:
        async with recorded(self._engine_cpu_s) as history:
            asked_s = time.perf_counter()
            outcome = await self._ask(session, model, num_tokens, VICTIM)
        turn.victim.append(outcome)
        if outcome.error is None:
            turn.engine_s.append(history.between(asked_s, asked_s + outcome.ttft_s))

    def _start_flood(
        self, session: aiohttp.ClientSession, model: str, num_tokens: int, salt: str, outcomes: list[RequestOutcome]
    ) -> list["asyncio.Task[None]"]:
        async def loop() -> None:
            while True:
                outcomes.append(await self._ask(session, model, num_tokens, salt))

        return [asyncio.create_task(loop()) for _ in range(self.pace.flooders)]

    async def _ask(self, session: aiohttp.ClientSession, model: str, num_tokens: int, salt: str) -> RequestOutcome:
        prompt = BenchPrompt(self._prompts.draw(num_tokens), num_tokens)
        request = CompletionRequest(self._url, model, prompt, OUTPUT_TOKENS, salt=salt)
        async with asyncio.timeout(self.pace.limit_s):
            return await complete(session, request)


async def _cancel(tasks: list["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task
