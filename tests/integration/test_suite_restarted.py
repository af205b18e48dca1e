"""The whole suite killed and started again: what was computed before comes from the pools' folders, and is the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checkpoints import served
from tests.support.suite import ENGINES, POOLS, Suite, running_suite
from tests.support.texts import real_text
from tests.support.waiting import eventually

pytestmark = [pytest.mark.suite, pytest.mark.slow, pytest.mark.timeout(240)]

LAYERS, NUM_BLOCKS = 3, 11  # of 64 tokens, with a tail of 41


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[Suite]:
    environ = served(tmp_path) | {"PRFAAS_POOL_OBJECT_URL": (tmp_path / "pool").as_uri()}
    with running_suite(tmp_path, **environ) as suite:
        yield suite


async def computed(suite: Suite) -> float:
    return sum([await suite.metric(name, "prefill_computed_tokens_total") for name in ("prefill-east", "prefill-west")])


async def test_a_prompt_survives_the_death_of_all_processes(suite: Suite) -> None:
    await suite.ready()
    prompt = (await suite.tokenize(real_text(8_000)))[: 64 * NUM_BLOCKS + 41]
    first = await suite.complete(prompt)
    assert await computed(suite) == 64 * NUM_BLOCKS

    async def is_written() -> bool:
        return await suite.metric("cachepool-west", "objects_stored") >= NUM_BLOCKS

    await eventually(is_written)
    for name in (*POOLS, *ENGINES, "gateway"):
        suite.kill(name)
    suite.start(*POOLS, *ENGINES, "gateway")
    await suite.ready()

    assert await suite.metric("cachepool-west", "objects_recovered_total") >= NUM_BLOCKS

    async def gateway_knows() -> bool:
        return await suite.metric("gateway", "placement_blocks", holder="cachepool-west") >= NUM_BLOCKS

    await eventually(gateway_knows)
    again = await suite.complete(prompt)
    assert again["choices"][0]["text"] == first["choices"][0]["text"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 64 * NUM_BLOCKS
    assert await computed(suite) == 0
    assert await suite.metric("cachepool-west", "object_entries_read_total") == LAYERS * NUM_BLOCKS
    await suite.assert_idle()
