"""How much one gateway process carries: requests and streamed tokens a second, what they cost it, its memory."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from benchmarks.gateway.contestants import MeasuredServer
from benchmarks.gateway.load import Drive, Refused, drive
from benchmarks.gateway.work import Body, Texts, completion, ids
from benchmarks.harness import Row, Spread

STEP_S = 0.01
WIDTH = 32
NUM_STREAMS, STREAMED_TOKENS = 256, 256
SHORT_CHARS, LONG_CHARS = 120, 4000
_SHARES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class GatewayLoad:
    """Requests of one kind in a closed loop; `body` yields another one for each number."""

    name: str
    body: Callable[[int], Body]
    num_requests: int
    width: int = WIDTH
    tokens_out: int = 1

    @property
    def unit(self) -> str:
        return "tokens" if self.tokens_out > 1 else "requests"


@dataclass
class Rounds:
    """What one contestant did under one load."""

    load: GatewayLoad
    drives: list[Drive] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    @property
    def amount(self) -> int:
        """Requests, or tokens where they are streamed, of one round."""
        return self.load.num_requests * self.load.tokens_out

    @property
    def rates(self) -> Spread:
        return Spread.of([self.amount / drive.elapsed_s for drive in self.drives])

    @property
    def cpu_ms(self) -> Spread:
        """Milliseconds of processor time for each request or token."""
        return Spread.of([1e3 * cpu_s / self.amount for cpu_s in self.cpu_s])

    def row(self, name: str) -> Row:
        row: Row = {"load": self.load.name, "code": name, **self.rates.cells(f"{self.load.unit}/s", 0)}
        row["CPU ms each"] = round(self.cpu_ms.median, 4)
        row["per CPU s"] = round(1e3 / self.cpu_ms.median)
        used = [cpu_s / drive.elapsed_s for cpu_s, drive in zip(self.cpu_s, self.drives, strict=True)]
        row["of a core"] = round(Spread.of(used).median, 2)
        for share in _SHARES:
            latency_ms = Spread.of([drive.latency_ms(share) for drive in self.drives]).median
            row[f"p{100 * share:.0f} ms"] = round(latency_ms, 1)
        if self.load.tokens_out > 1:
            events = Spread.of([float(drive.num_events) for drive in self.drives]).median
            row["tokens an event"] = round(self.amount / events, 2)
        return row


def loads(num_requests: int, num_streams: int) -> Sequence[GatewayLoad]:
    """Return what is sent: short and middling prompts as ids and as text, and many streams at once."""
    texts = Texts()

    def of_ids(num_tokens: int, number: int) -> Body:
        return completion(ids(number, num_tokens))

    def of_text(num_chars: int, number: int) -> Body:
        return completion(texts.piece(number, num_chars))

    def streamed(number: int) -> Body:
        return completion(texts.piece(number, SHORT_CHARS), max_tokens=STREAMED_TOKENS, stream=True)

    return [
        GatewayLoad("30 ids", partial(of_ids, 30), num_requests),
        GatewayLoad("30 tokens of text", partial(of_text, SHORT_CHARS), num_requests),
        GatewayLoad("1,000 ids", partial(of_ids, 1000), num_requests),
        GatewayLoad("1,000 tokens of text", partial(of_text, LONG_CHARS), num_requests),
        GatewayLoad(f"{NUM_STREAMS} streams", streamed, num_streams, min(NUM_STREAMS, num_streams), STREAMED_TOKENS),
    ]


def mixed(num_requests: int) -> GatewayLoad:
    """Return all kinds in turn, for as long as memory is to be watched."""
    texts = Texts()

    def body(number: int) -> Body:
        forms = (texts.piece(number, SHORT_CHARS), ids(number, 30), ids(number, 1000))
        extra = {"max_tokens": 8, "stream": True} if number % 2 else {}
        return completion(forms[number % len(forms)], **extra)

    return GatewayLoad("mixed", body, num_requests)


class Throughput:
    """Puts contestants under equal load, in turn. Numbers go on, so that no prompt comes twice to one of them."""

    def __init__(self, contestants: Mapping[str, MeasuredServer]) -> None:
        self._contestants = contestants
        self._next: dict[str, int] = dict.fromkeys(contestants, 0)

    async def once(self, name: str, load: GatewayLoad) -> tuple[Drive, float]:
        """Return what the client saw and the seconds of processor time that the contestant spent."""
        contestant, first = self._contestants[name], self._next[name]
        self._next[name] += load.num_requests
        bodies = [
            json.dumps({**load.body(first + number), "model": contestant.model}).encode()
            for number in range(load.num_requests)
        ]
        before = contestant.process.cpu_s()
        seen = await drive(contestant.address, bodies, load.width)
        return seen, contestant.process.cpu_s() - before

    async def rounds(self, loads: Sequence[GatewayLoad], num_rounds: int) -> dict[str, dict[str, Rounds]]:
        """Return what was seen by load and contestant, those left out that refuse the load. A first round warms up."""
        seen: dict[str, dict[str, Rounds]] = {}
        for load in loads:
            names = [name for name in self._contestants if await self._takes(name, load)]
            seen[load.name] = {name: Rounds(load) for name in names}
        for number in range(num_rounds):
            for load in loads:
                names = list(seen[load.name])
                for name in names if number % 2 else reversed(names):
                    drive, cpu_s = await self.once(name, load)
                    seen[load.name][name].drives.append(drive)
                    seen[load.name][name].cpu_s.append(cpu_s)
        return seen

    async def _takes(self, name: str, load: GatewayLoad) -> bool:
        """Send the load once; return whether it was answered."""
        try:
            await self.once(name, load)
        except Refused:
            return False
        return True

    async def memory(self, name: str, num_requests: int) -> Row:
        """Return the memory of a contestant, in MiB, before any request, after `num_requests` and after ten times as
        many."""
        process = self._contestants[name].process
        row: Row = {"load": "mixed", "code": name, "MiB at the start": process.rss_bytes() >> 20}
        for num_more, total in ((num_requests, num_requests), (9 * num_requests, 10 * num_requests)):
            await self.once(name, mixed(num_more))
            row[f"after {total:,}"] = process.rss_bytes() >> 20
        return row
