"""Requests that give their pages up and go on later: nothing is lost, nothing is said twice, nothing is waited for."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

import pytest

from shared.engine.batching import MessageBatcher
from shared.errors import ContextTooLong
from shared.kv.frame import Frame
from tests.support.engines import Result, TwoDatacenters, two_datacenters
from tests.support.tiny import MODELS, greedy_reference, prompt
from tests.support.waiting import LIMIT_S, until

BLOCK = 64


class Squeeze(NamedTuple):
    """Two requests, each of which fits alone; the first needs what the second has given up."""

    num_pages: int
    first: tuple[int, int]  # tokens of prompt and answer
    second: tuple[int, int]


SQUEEZES = {
    "llama": Squeeze(8, (100, 350), (130, 200)),
    "gemma3": Squeeze(39, (100, 800), (400, 300)),  # a page of each of its four layers for 64 tokens
}


async def squeeze(dcs: TwoDatacenters) -> Result:
    """Let one request take the pages of another that came later; return the later one's result."""
    _, (num_tokens, num_generated), _ = SQUEEZES[dcs.name]
    first = asyncio.create_task(dcs.generate(prompt(num_tokens), num_generated, num_blocks=0))
    await until(lambda: dcs.decode.metric("num_requests_running") == 1)
    result = await second(dcs)
    assert (await first).ids == greedy_reference(dcs.name, prompt(num_tokens), num_generated)
    assert dcs.decode.metric("num_preemptions_total") >= 1
    await dcs.assert_idle()
    return result


async def second(dcs: TwoDatacenters) -> Result:
    num_tokens, num_generated = SQUEEZES[dcs.name].second
    tokens = prompt(num_tokens, seed=1)
    return await dcs.generate(tokens, num_generated, num_blocks=0, wait_ms=60_000, logit_bias={3: 0.5})


async def alone(name: str) -> Result:
    async with two_datacenters(name) as dcs:
        return await second(dcs)


def squeezed(name: str) -> AbstractAsyncContextManager[TwoDatacenters]:
    return two_datacenters(name, num_pages=SQUEEZES[name].num_pages)


@pytest.mark.parametrize("name", MODELS)
async def test_the_pool_is_the_swap(name: str) -> None:
    async with squeezed(name) as dcs:
        result = await squeeze(dcs)
        assert dcs.decode.metric("fetched_entries_total") > 0
        assert dcs.decode.metric("missing_entries_total") == 0
        assert 0 < dcs.decode.metric("decode_recomputed_tokens_total") <= BLOCK
        assert dcs.decode.metric("decode_computed_prompt_tokens_total") == sum(
            num_tokens for num_tokens, _ in SQUEEZES[name][1:]
        )
    solo = await alone(name)
    assert (result.ids, result.decode_computed) == (solo.ids, SQUEEZES[name].second[0])


@pytest.mark.parametrize("name", MODELS)
async def test_without_a_pool_it_is_computed_again_at_once(name: str) -> None:
    async with squeezed(name) as dcs:
        await dcs.pool_west.server.stop(0)
        async with asyncio.timeout(LIMIT_S):
            result = await squeeze(dcs)
        assert dcs.decode.metric("decode_recomputed_tokens_total") > BLOCK
    assert result.ids == (await alone(name)).ids


@pytest.mark.parametrize("name", MODELS)
async def test_blocks_that_the_pool_has_dropped_are_computed_again_at_once(name: str) -> None:
    async with squeezed(name) as dcs:
        assert dcs.pool_west.pool is not None
        store = dcs.pool_west.pool.store

        async def forget() -> None:
            await until(lambda: dcs.decode.metric("num_preemptions_total") > 0)
            store._shelf._blocks.clear()

        forgetting = asyncio.create_task(forget())
        async with asyncio.timeout(LIMIT_S):
            result = await squeeze(dcs)
        await forgetting
    assert result.ids == (await alone(name)).ids


def slowed(seal: Callable[..., list[Frame]]) -> Callable[..., list[Frame]]:
    def slowly(*args: Any) -> list[Frame]:
        time.sleep(0.05)
        return seal(*args)

    return slowly


@pytest.mark.parametrize("name", MODELS)
async def test_pages_are_not_reused_before_they_are_published(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else other content would be published under their keys, and come back as this request's."""
    for way in ("_seal_batch", "_seal_in_place"):
        monkeypatch.setattr(MessageBatcher, way, slowed(getattr(MessageBatcher, way)))
    async with squeezed(name) as dcs:
        result = await squeeze(dcs)
        assert dcs.decode.metric("decode_published_blocks_total") > 0
    assert result.ids == (await alone(name)).ids


async def test_a_request_of_a_higher_priority_takes_pages_from_a_lower_one() -> None:
    async with two_datacenters("llama", num_pages=8) as dcs:
        low = Result()
        running = asyncio.create_task(dcs.generate(prompt(300), 120, num_blocks=0, priority=1, result=low))
        await until(lambda: len(low.ids) > 3)
        urgent = await dcs.generate(prompt(200, seed=1), 20, num_blocks=0)
        assert len(low.ids) < 120  # it waited meanwhile
        assert dcs.decode.metric("num_preemptions_total") == 1
        assert urgent.ids == greedy_reference("llama", prompt(200, seed=1), 20)
        await running
        assert low.ids == greedy_reference("llama", prompt(300), 120)
        await dcs.assert_idle()


async def test_requests_of_one_priority_wait_for_each_other() -> None:
    async with two_datacenters("llama", num_pages=8) as dcs:
        first, second = Result(), Result()
        running = asyncio.create_task(dcs.generate(prompt(300), 120, num_blocks=0, result=first))
        await until(lambda: len(first.ids) > 3)
        await dcs.generate(prompt(200, seed=1), 20, num_blocks=0, result=second)
        await running
        assert dcs.decode.metric("num_preemptions_total") == 0
        await dcs.assert_idle()


async def test_a_request_that_could_never_fit_is_refused() -> None:
    async with two_datacenters("llama", num_pages=8) as dcs:
        with pytest.RaisesGroup(ContextTooLong):
            await dcs.generate(prompt(500), 13, num_blocks=0)
        assert len((await dcs.generate(prompt(500), 12, num_blocks=0)).ids) == 12


async def test_a_request_that_waits_for_pages_hears_that_prefill_failed() -> None:
    async with two_datacenters("llama", num_pages=8) as dcs:
        first = Result()
        running = asyncio.create_task(dcs.generate(prompt(300), 150, num_blocks=0, result=first))
        await until(lambda: first.ids)
        async with asyncio.timeout(LIMIT_S):
            second = await dcs.generate(
                prompt(250, seed=1), 5, prefill=False, wait_ms=60_000, prefill_failed_after_s=0.0
            )
        assert second.ids == greedy_reference("llama", prompt(250, seed=1), 5)
        await running
