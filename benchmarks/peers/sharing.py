"""A prompt on A, then the same on B: how soon B answers, and whether it says what A said."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import aiohttp

from benchmarks.client import CompletionRequest, RequestOutcome, complete
from benchmarks.harness import Check, Row, Spread, at_most
from benchmarks.peers.pairs import SETTLE_S, Pair
from benchmarks.peers.process import PeerFailed
from benchmarks.prompts import BenchPrompt, make_prompt

OUTPUT_LEN = 16
TOP_LOGPROBS = 5
NEAR_TIE = 0.6
"""bfloat16: a prefix computed in other parts moves logits by up to some 0.56. Of tokens so close either is right."""

LARGEST_RATIO = 0.15
WARM_UP_TOKENS = 600
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Asked:
    """One prompt's answers."""

    cold: RequestOutcome  # A's, which has computed the prompt
    shared: RequestOutcome  # B's


def share(pair: Pair, model: str, lengths: Sequence[int], repetitions: int) -> dict[int, list[Asked]]:
    """Ask A for everything, let it leave, ask B for the same. Raises `PeerFailed`. Wants an event loop of its own."""
    return asyncio.run(_share(pair, model, lengths, repetitions))


async def _share(pair: Pair, model: str, lengths: Sequence[int], repetitions: int) -> dict[int, list[Asked]]:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        prompts = {
            length: [
                await make_prompt(session, pair.a, model, "text", length * 100 + number, length)
                for number in range(repetitions)
            ]
            for length in lengths
        }
        warm_up = [await make_prompt(session, pair.a, model, "random", seed, WARM_UP_TOKENS) for seed in range(2)]
        await _ask(session, pair.a, model, warm_up[0])
        cold = {length: [await _ask(session, pair.a, model, p) for p in prompts[length]] for length in lengths}
        await asyncio.sleep(SETTLE_S)
        pair.leave_a()
        await _ask(session, pair.b, model, warm_up[1])
        shared = {length: [await _ask(session, pair.b, model, p) for p in prompts[length]] for length in lengths}
    return {length: [Asked(*both) for both in zip(cold[length], shared[length], strict=True)] for length in lengths}


async def _ask(session: aiohttp.ClientSession, url: str, model: str, prompt: BenchPrompt) -> RequestOutcome:
    outcome = await complete(session, CompletionRequest(url, model, prompt, OUTPUT_LEN, num_logprobs=TOP_LOGPROBS))
    if outcome.error is not None:
        raise PeerFailed(f"{url}: {outcome.error}")
    return outcome


def is_wrong(cold: RequestOutcome, shared: RequestOutcome) -> bool:
    """Whether B says something that A found clearly less likely than what it said itself.

    The first difference decides: what follows continues another text.
    """
    for here, there, likely in zip(cold.tokens, shared.tokens, cold.top_logprobs, strict=False):
        if here != there:
            return likely[here] - likely.get(there, -math.inf) > NEAR_TIE
    return len(cold.tokens) != len(shared.tokens)


def rows(name: str, asked: dict[int, list[Asked]]) -> list[Row]:
    return [
        {
            "pair": name,
            "tokens": length,
            **Spread.of([one.cold.ttft_s * 1000 for one in found]).cells("a_cold_ms"),
            **Spread.of([one.shared.ttft_s * 1000 for one in found]).cells("b_shared_ms"),
            "b_cached_tokens": min(one.shared.cached_tokens for one in found),
            "same_texts": sum(one.cold.tokens == one.shared.tokens for one in found),
            "wrong_texts": sum(is_wrong(one.cold, one.shared) for one in found),
            "repetitions": len(found),
        }
        for length, found in asked.items()
    ]


def checks(ours: dict[int, list[Asked]], theirs: dict[int, list[Asked]]) -> list[Check]:
    """Compare B with B, as far as both were measured."""
    found = [
        at_most(
            f"{length} tokens: our B, times theirs", _typical(ours[length]) / _typical(theirs[length]), LARGEST_RATIO
        )
        for length in ours
        if length in theirs
    ]
    num_wrong = sum(is_wrong(one.cold, one.shared) for several in ours.values() for one in several)
    return [*found, at_most("wrong texts of our B", num_wrong, 0)]


def _typical(asked: Sequence[Asked]) -> float:
    return median(one.shared.ttft_s for one in asked)
