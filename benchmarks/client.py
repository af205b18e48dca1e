"""One completion against an OpenAI-compatible server, with the time of every token that is streamed."""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from benchmarks.prompts import BenchPrompt


@dataclass(frozen=True)
class CompletionRequest:
    url: str
    model: str
    prompt: BenchPrompt
    output_len: int
    ignore_eos: bool = True
    num_logprobs: int | None = None  # of each position's likeliest tokens
    stream: bool = True  # else the answer comes in one piece, which counts as one token
    request_id: str = ""  # by which the server's logs name it, if it minds; empty: the server's choice
    salt: str | None = None  # says whose request it is, to servers of ours


@dataclass
class RequestOutcome:
    """Times are seconds since the request was sent; `token_times_s` has one entry per streamed piece."""

    error: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    token_times_s: list[float] = field(default_factory=list)
    end_s: float = 0.0
    text: str = ""
    tokens: list[str] = field(default_factory=list)  # this and the next, if log-probabilities were asked for
    top_logprobs: list[dict[str, float]] = field(default_factory=list)

    @property
    def ttft_s(self) -> float:
        return self.token_times_s[0]

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first; None for a single token."""
        return (self.end_s - self.ttft_s) / (self.output_tokens - 1) if self.output_tokens > 1 else None

    @property
    def itls_s(self) -> list[float]:
        return [b - a for a, b in zip(self.token_times_s, self.token_times_s[1:], strict=False)]


async def complete(session: aiohttp.ClientSession, request: CompletionRequest) -> RequestOutcome:
    """Never raises for a request that fails: the outcome says why."""
    outcome = RequestOutcome()
    started = time.perf_counter()
    try:
        headers = {"X-Request-Id": request.request_id} if request.request_id else {}
        async with session.post(f"{request.url}/v1/completions", json=_body(request), headers=headers) as response:
            if response.status != 200:
                outcome.error = f"HTTP {response.status}: {(await response.text())[:200]}"
                return outcome
            if not request.stream:
                _take(outcome, await response.json(), 0.0)
                outcome.end_s = time.perf_counter() - started
                outcome.token_times_s = [outcome.end_s]
                return outcome
            async for event in _events(response):
                _take(outcome, event, time.perf_counter() - started)
                outcome.end_s = time.perf_counter() - started
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        outcome.error = f"{type(error).__name__}: {error}"
    if outcome.error is None and not outcome.token_times_s:
        outcome.error = "the stream ended without a token"
    outcome.output_tokens = outcome.output_tokens or len(outcome.token_times_s)
    return outcome


def _body(request: CompletionRequest) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": request.model,
        "prompt": request.prompt.content,
        "max_tokens": request.output_len,
        "temperature": 0.0,
    }
    if request.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if request.ignore_eos:
        body["ignore_eos"] = True  # beyond OpenAI's own parameters: vLLM, SGLang and we know it
    if request.salt is not None:
        body["cache_salt"] = request.salt
    if request.num_logprobs is not None:
        body["logprobs"] = request.num_logprobs
    return body


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    # Lines, not chunks: TCP cuts where it likes. Server-sent events end at `[DONE]`; who stops reading there closes the
    # connection, which a server takes for a client that has gone.
    done = False
    async for line in response.content:
        if line.startswith(b"data:"):
            data = line[len(b"data:") :].strip()
            if data == b"[DONE]":
                done = True
            else:
                yield json.loads(data)
    if not done:
        raise ValueError("the stream ended without [DONE]")


def _take(outcome: RequestOutcome, event: dict[str, Any], at_s: float) -> None:
    if error := event.get("error"):
        outcome.error = str(error.get("message", error)) if isinstance(error, dict) else str(error)
    for choice in event.get("choices") or ():
        # The piece that only carries the finish reason is no token.
        if choice.get("text") or choice.get("finish_reason") is None:
            outcome.token_times_s.append(at_s)
            outcome.text += choice.get("text") or ""
        if logprobs := choice.get("logprobs"):
            outcome.tokens += logprobs["tokens"]
            outcome.top_logprobs += logprobs["top_logprobs"]
    if usage := event.get("usage"):
        outcome.prompt_tokens = usage["prompt_tokens"]
        outcome.output_tokens = usage["completion_tokens"]
        outcome.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
