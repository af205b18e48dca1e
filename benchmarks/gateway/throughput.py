"""How much one gateway process carries: requests and streamed tokens a second, what they cost it, its memory."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from benchmarks.gateway.load import Address, Drive, drive
from benchmarks.gateway.processes import ChildProcess
from benchmarks.gateway.work import Body, Texts, completion, ids
from benchmarks.harness import Row, Spread

STEP_S = 0.01
STREAMED_TOKENS = 256
NUM_STREAMS = 256
WIDTH = 32


@dataclass(frozen=True)
class Load:
    """Requests of one kind in a closed loop; `body` yields another one for each number."""

    name: str
    body: Callable[[int], Body]
    num_requests: int
    width: int = WIDTH
    tokens_out: int = 1


@dataclass
class Contestant:
    """A server under load, and the process that does the work."""

    address: Address
    process: ChildProcess
    model: str | None = None  # what it wants to be asked for


class Seen:
    """The rounds of one contestant under one load."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._drives: list[Drive] = []
        self._cpu_s: list[float] = []

    def add(self, drive: Drive, cpu_s: float) -> None:
        self._drives.append(drive)
        self._cpu_s.append(cpu_s)

    @property
    def rates(self) -> Spread:
        """Of requests, or of tokens where they are streamed, a second."""
        return Spread.of([self._amount / drive.elapsed_s for drive in self._drives])

    @property
    def _amount(self) -> int:
        return self._load.num_requests * self._load.tokens_out

    def row(self, name: str) -> Row:
        amount, drives = self._amount, self._drives
        unit = "tokens" if self._load.tokens_out > 1 else "requests"
        row: Row = {"load": self._load.name, "code": name, **self.rates.cells(f"{unit}/s", 0)}
        row["CPU ms each"] = round(1e3 * Spread.of(self._cpu_s).median / amount, 4)
        row["of a core"] = round(Spread.of([c / d.elapsed_s for c, d in zip(self._cpu_s, drives, strict=True)]).median, 2)
        for share in (0.5, 0.9, 0.99):
            row[f"p{100 * share:.0f} ms"] = round(Spread.of([drive.latency_ms(share) for drive in drives]).median, 1)
        if self._load.tokens_out > 1:
            row["tokens an event"] = round(amount / Spread.of([float(drive.num_events) for drive in drives]).median, 2)
        return row


def loads(num_requests: int, num_streams: int) -> Sequence[Load]:
    """Return what is sent: short and middling prompts as ids and as text, and many streams at once."""
    texts = Texts()

    def of_ids(num_tokens: int, number: int) -> Body:
        return completion(ids(number, num_tokens))

    def of_text(num_chars: int, number: int) -> Body:
        return completion(texts.piece(number, num_chars))

    def streamed(number: int) -> Body:
        return completion(texts.piece(number, 120), max_tokens=STREAMED_TOKENS, stream=True)

    return [
        Load("30 ids", partial(of_ids, 30), num_requests),
        Load("30 tokens of text", partial(of_text, 120), num_requests),
        Load("1,000 ids", partial(of_ids, 1000), num_requests),
        Load("1,000 tokens of text", partial(of_text, 4000), num_requests),
        Load(f"{NUM_STREAMS} streams", streamed, num_streams, NUM_STREAMS, STREAMED_TOKENS),
    ]


class Throughput:
    """Puts contestants under equal load, in turn. Numbers go on, so that no prompt comes twice to one of them."""

    def __init__(self, contestants: Mapping[str, Contestant]) -> None:
        self._contestants = contestants
        self._next: dict[str, int] = dict.fromkeys(contestants, 0)

    async def once(self, name: str, load: Load) -> tuple[Drive, float]:
        """Return what the client saw and the seconds of processor time that the contestant spent."""
        contestant, first = self._contestants[name], self._next[name]
        self._next[name] += load.num_requests
        bodies = [
            json.dumps({**load.body(first + number), "model": contestant.model}).encode()
            for number in range(load.num_requests)
        ]
        before = contestant.process.cpu_s()
        seen = await drive(contestant.address, bodies, min(load.width, load.num_requests))
        return seen, contestant.process.cpu_s() - before

    async def rounds(self, loads: Sequence[Load], num_rounds: int) -> dict[str, dict[str, Seen]]:
        """Return what was seen by load and contestant; a first round warms up and is not counted."""
        seen = {load.name: {name: Seen(load) for name in self._contestants} for load in loads}
        for number in range(num_rounds + 1):
            for load in loads:
                names = list(self._contestants)
                for name in names if number % 2 else reversed(names):
                    drive, cpu_s = await self.once(name, load)
                    if number:
                        seen[load.name][name].add(drive, cpu_s)
        return seen
