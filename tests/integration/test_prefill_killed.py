"""A prefill worker is killed in the middle of a prompt: another one finishes it from what the pool has."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checkpoints import VOCAB, served
from tests.support.suite import Suite, running_suite

pytestmark = [pytest.mark.suite, pytest.mark.timeout(120)]

SERVICES = ("cachepool-east", "cachepool-west", "prefill-east", "prefill-east-2", "decode-west", "gateway")
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
    prompt = [rng.randrange(3, VOCAB) for _ in range(PROMPT_TOKENS)]
    request = asyncio.create_task(suite.complete(prompt))
    first, second = await _whose_it_is(suite)
    suite.kill(first)
    answer = await request

    computed = await suite.metric(second, "prefill_computed_blocks_total")
    reused = await suite.metric(second, "prefill_reused_blocks_total")
    assert await suite.metric("gateway", "prefill_failures_total") == 1
    assert computed + reused == NUM_BLOCKS
    assert 0 < reused < NUM_BLOCKS
    alone = await suite.complete(prompt, cache_salt="computed by one worker")
    assert alone["choices"][0]["text"] == answer["choices"][0]["text"]
    await suite.assert_idle()


async def _whose_it_is(suite: Suite) -> tuple[str, str]:
    """Wait until a prefill worker has computed some blocks; return it, and the other one."""
    async with asyncio.timeout(30):
        while True:
            for worker, other in (("prefill-east", "prefill-east-2"), ("prefill-east-2", "prefill-east")):
                if await suite.metric(worker, "prefill_computed_tokens_total") >= 10 * BLOCK:
                    return worker, other
            await asyncio.sleep(0.01)
