"""A prefill worker is killed in the middle of a prompt: another one finishes it from what the pool has."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checkpoints import VOCAB, served
from tests.support.suite import Suite, running_suite
from tests.support.waiting import LIMIT_S

pytestmark = [pytest.mark.suite, pytest.mark.timeout(240)]

WORKERS = ("prefill-east", "prefill-east-2")
SERVICES = ("cachepool-east", "cachepool-west", *WORKERS, "decode-west", "gateway")
PROMPT_TOKENS, BLOCK = 7_000, 64
NUM_BLOCKS = PROMPT_TOKENS // BLOCK


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[Suite]:
    """Prompts are computed a block at a time: there is time to kill a worker in between."""
    environ = served(tmp_path) | {"PRFAAS_CHUNK_TOKENS": str(BLOCK)}
    with running_suite(tmp_path, SERVICES, **environ) as suite:
        yield suite


async def test_another_worker_finishes_what_a_killed_one_began(suite: Suite) -> None:
    await suite.ready()
    rng = random.Random(3)
    failures = 0.0
    while True:
        made = {worker: await _made(suite, worker) for worker in WORKERS}
        tokens = {worker: await _tokens(suite, worker) for worker in WORKERS}
        prompt = _prompt(rng, PROMPT_TOKENS)
        request = asyncio.create_task(suite.complete(prompt))
        first, second = await _whose_it_is(suite, tokens)
        suite.kill(first)
        answer = await request
        failures, before = await suite.metric("gateway", "prefill_failures_total"), failures
        computed, reused = (now - then for now, then in zip(await _made(suite, second), made[second], strict=True))
        if failures > before and computed and reused:
            break
        # It was through with the prompt before it was killed, or no block was in the pool with all of its layers.
        suite.start(first)
        await suite.ready()

    assert computed + reused == NUM_BLOCKS
    alone = await suite.complete(prompt, cache_salt="computed by one worker")
    assert alone["choices"][0]["text"] == answer["choices"][0]["text"]
    await suite.assert_idle()


def _prompt(rng: random.Random, num_tokens: int) -> list[int]:
    return [rng.randrange(3, VOCAB) for _ in range(num_tokens)]


async def _made(suite: Suite, worker: str) -> tuple[float, float]:
    """Return how many blocks of prompts a worker has computed, and how many it has found."""
    computed = await suite.metric(worker, "prefill_computed_blocks_total")
    return computed, await suite.metric(worker, "prefill_reused_blocks_total")


async def _tokens(suite: Suite, worker: str) -> float:
    """Return how many tokens of prompts a worker has computed; blocks are counted when a prompt is through."""
    return await suite.metric(worker, "prefill_computed_tokens_total")


async def _whose_it_is(suite: Suite, before: dict[str, float]) -> tuple[str, str]:
    """Wait until a prefill worker has computed some blocks more; return it, and the other one."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            for worker, other in (WORKERS, WORKERS[::-1]):
                if await _tokens(suite, worker) >= before[worker] + 10 * BLOCK:
                    return worker, other
            await asyncio.sleep(0.01)
