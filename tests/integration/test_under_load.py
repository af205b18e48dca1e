"""Many requests, few pages: whatever is cancelled or pre-empted, every answer is the one of a solo run."""

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.engines import Result, TwoDatacenters, two_datacenters
from tests.support.tiny import MODELS, greedy_reference, prompt

NUM_REQUESTS = 32
NUM_PAGES = {"llama": 17, "gemma3": 42}  # a little more than the largest request needs
ARRIVALS_S = 1.5
WARM: dict[str, Any] = {"temperature": 1.3, "top_k": 80, "frequency_penalty": 0.4, "repetition_penalty": 1.2}


@dataclass
class Request:
    tokens: list[int]
    num_tokens: int
    arrives_s: float
    priority: int
    prefill: bool
    sampling: dict[str, Any] = field(default_factory=dict)
    cancelled_after_s: float | None = None
    result: Result = field(default_factory=Result)

    @property
    def greedy(self) -> bool:
        return not self.sampling


def requests(seed: int) -> list[Request]:
    """Lengths from one token to half of the pages; a fifth sampled, a fifth cancelled, two prompts shared."""
    rng = random.Random(seed)
    shared = prompt(200, seed=99)
    made = []
    for number in range(NUM_REQUESTS):
        own = prompt(rng.choice([1, 5, 63, 64, 65, 130, 300, 600]), seed=number)
        made.append(
            Request(
                tokens=shared + own if number % 8 == 3 else own,
                num_tokens=rng.choice([1, 10, 60, 100, 150]),
                arrives_s=rng.uniform(0, ARRIVALS_S),
                priority=rng.choice([0, 0, 0, -1, 1]),
                prefill=rng.random() < 0.7,
                sampling={**WARM, "seed": number} if number % 5 == 1 else {},
                cancelled_after_s=rng.uniform(0.02, 0.5) if number % 5 == 4 else None,
            )
        )
    return made


@pytest.mark.parametrize("name", MODELS)
async def test_every_answer_equals_its_solo_run(name: str) -> None:
    made = requests(seed=1)
    async with two_datacenters(name, num_pages=NUM_PAGES[name]) as dcs:
        await asyncio.gather(*(_ask(dcs, request) for request in made))
        assert dcs.decode.metric("num_preemptions_total") > 0
        assert dcs.decode.metric("decode_recomputed_tokens_total") > 0
        await dcs.assert_idle()
    cancelled = [request for request in made if len(request.result.ids) < request.num_tokens]
    assert all(request.cancelled_after_s is not None for request in cancelled)
    assert 0 < len(cancelled) < 8
    for request in made:
        if request.greedy:
            expected = greedy_reference(name, request.tokens, request.num_tokens)
            assert request.result.ids == expected[: len(request.result.ids)]
    async with two_datacenters(name) as alone:
        for request in made:
            if not request.greedy:
                solo = await alone.generate(request.tokens, request.num_tokens, **request.sampling)
                assert request.result.ids == solo.ids[: len(request.result.ids)]


async def _ask(dcs: TwoDatacenters, request: Request) -> None:
    await asyncio.sleep(request.arrives_s)
    try:
        async with asyncio.timeout(request.cancelled_after_s):
            await dcs.generate(
                request.tokens,
                request.num_tokens,
                prefill=request.prefill,
                wait_ms=60_000 if request.prefill else 0,
                priority=request.priority,
                result=request.result,
                **request.sampling,
            )
    except TimeoutError:
        assert request.cancelled_after_s is not None
