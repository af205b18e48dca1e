"""A load whose every request is accounted for: answered, failed for a reason, or, which must not be, neither."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp

from benchmarks.client import CompletionRequest, RequestOutcome, complete
from benchmarks.prompts import BenchPrompt

OUTPUT_TOKENS = 1


@dataclass
class Account:
    """What became of the requests of a load."""

    num_asked: int
    ttfts_s: list[float] = field(default_factory=list)  # of those answered, with all their tokens
    failed: Counter[str] = field(default_factory=Counter)  # by reason
    seconds: float = 0.0  # from the first request to the last answer

    @property
    def num_unaccounted(self) -> int:
        return self.num_asked - len(self.ttfts_s) - sum(self.failed.values())

    def note(self, outcome: RequestOutcome) -> None:
        if outcome.error is not None:
            self.failed[outcome.error.partition("\n")[0][:80]] += 1
        elif outcome.output_tokens != OUTPUT_TOKENS:
            self.failed[f"{outcome.output_tokens} tokens instead of {OUTPUT_TOKENS}"] += 1
        else:
            self.ttfts_s.append(outcome.ttft_s)


async def accounted(
    session: aiohttp.ClientSession, url: str, model: str, prompts: Sequence[BenchPrompt], at_once: int, limit_s: float
) -> Account:
    """Ask for one token of each prompt, `at_once` at a time. A request without an answer in `limit_s` has failed."""
    account, slots = Account(len(prompts)), asyncio.Semaphore(at_once)

    async def one(prompt: BenchPrompt) -> None:
        async with slots:
            try:
                async with asyncio.timeout(limit_s):
                    account.note(await complete(session, CompletionRequest(url, model, prompt, OUTPUT_TOKENS)))
            except TimeoutError:
                account.failed[f"no answer within {limit_s:g} s"] += 1

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for prompt in prompts:
            group.create_task(one(prompt))
    account.seconds = time.perf_counter() - started
    return account
