"""Requests with times that are given, sent whether or not earlier ones are answered, and the plan of each."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from benchmarks.client import CompletionRequest, RequestOutcome, complete
from benchmarks.prompts import BenchPrompt
from benchmarks.simulator.live.sites import GATEWAY
from benchmarks.streaming.asking import Bench

OUTPUT_TOKENS = 4


class AskedPrompt(NamedTuple):
    """A request that is to be sent."""

    at_s: float
    num_tokens: int


class Answered(NamedTuple):
    """A request as it went."""

    at_s: float  # when it was sent
    num_tokens: int
    ttft_s: float
    plan_s: float  # from sending it to its plan
    kind: str  # of the plan
    forecast_s: float
    is_rescued: bool


@dataclass(frozen=True)
class _Sent:
    request_id: str
    at_s: float
    at_unix_s: float
    num_tokens: int
    answer: "asyncio.Task[RequestOutcome]"


class LiveLoad:
    """Sends to the gateway. Times are seconds since the load was made."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._began = time.monotonic()
        self._num_sent = 0

    @property
    def now_s(self) -> float:
        return time.monotonic() - self._began

    async def send(self, requests: Sequence[AskedPrompt]) -> list[Answered]:
        """Send all of them, the first one `at_s` after now; return when all are answered. Raises `RuntimeError`."""
        start_s, sent = self.now_s, []
        for request in requests:
            await asyncio.sleep(max(0.0, start_s + request.at_s - self.now_s))
            sent.append(self._send(request.num_tokens))
        outcomes = [await one.answer for one in sent]
        if failed := [outcome.error for outcome in outcomes if outcome.error is not None]:
            raise RuntimeError(f"{len(failed)} of {len(outcomes)} requests failed: {failed[0]}")
        events = self._bench.suite.events_by_request(GATEWAY)
        return [_answered(one, outcome, events) for one, outcome in zip(sent, outcomes, strict=True)]

    def _send(self, num_tokens: int) -> _Sent:
        bench, request_id = self._bench, f"load-{self._num_sent}"
        self._num_sent += 1
        content = BenchPrompt(bench.new_prompt(num_tokens), num_tokens)
        url = bench.suite.http_url(GATEWAY)
        request = CompletionRequest(url, bench.model, content, OUTPUT_TOKENS, request_id=request_id)
        task = asyncio.create_task(complete(bench.session, request), name=request_id)
        return _Sent(request_id, self.now_s, time.time(), num_tokens, task)


def _answered(sent: _Sent, outcome: RequestOutcome, events: dict[tuple[str, str], dict[str, Any]]) -> Answered:
    plan = events[sent.request_id, "request_planned"]
    planned_at = datetime.fromisoformat(plan["timestamp"]).timestamp()
    return Answered(
        at_s=sent.at_s,
        num_tokens=sent.num_tokens,
        ttft_s=outcome.ttft_s,
        plan_s=max(0.0, planned_at - sent.at_unix_s),
        kind=plan["kind"],
        forecast_s=plan["forecast_ttft_s"],
        is_rescued=(sent.request_id, "rescued") in events,
    )
