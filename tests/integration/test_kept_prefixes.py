"""Pins and quotas from a client's side: a gateway's HTTP, real pools too small for what is asked, tiny models."""

import random
import string
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.cachepool.store.block import whole_charge
from shared.ids import WorkerId
from tests.support.engines import Node
from tests.support.served import ServedTiny, served_tiny
from tests.support.tiny import tiny_model
from tests.support.waiting import until

BLOCK, POOL_BLOCKS = 64, 24
PREFIX_BLOCKS, FILLER_BLOCKS = 5, 10
NUM_PAGES = FILLER_BLOCKS + 4  # of an engine, one for each block: it too forgets in a flood


class Service(ServedTiny):
    async def cached_blocks(self, prompt: str, **fields: Any) -> int:
        """Return `cached_tokens` in blocks; the prompt is none of whole blocks."""
        tokens = await self.cached_tokens(prompt, **fields)
        assert tokens % BLOCK == 0
        return tokens // BLOCK

    async def cached_tokens(self, prompt: str, **fields: Any) -> int:
        """Ask for two tokens and return how much of the prompt was not computed; wait until everything is let go."""
        body = {"prompt": prompt, "max_tokens": 2, "ignore_eos": True, "temperature": 0, **fields}
        answer = await self.complete(**body)
        await self.dcs.assert_idle()
        tokens: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        return tokens

    async def keep(self, prompt: str) -> str:
        """Pin a prefix and return its id."""
        async with self.client.post("/v1/prefixes", json={"prompt": prompt, "ttl_s": 600}) as response:
            answer = await response.json()
            assert response.status == 200, answer
        await self.dcs.assert_idle()
        assert answer["kept_tokens"] == PREFIX_BLOCKS * BLOCK
        prefix_id: str = answer["id"]
        return prefix_id

    async def flood(self, seed: int, **fields: Any) -> None:
        """Ask for three times as much as the pools hold."""
        evicted = [self.num_evicted(node) for node in (self.dcs.pool_east, self.dcs.pool_west)]
        for number in range(3 * POOL_BLOCKS // FILLER_BLOCKS):
            await self.cached_blocks(text((seed, number), FILLER_BLOCKS), **fields)
        for node, before in zip((self.dcs.pool_east, self.dcs.pool_west), evicted, strict=True):
            assert self.num_evicted(node) - before >= POOL_BLOCKS

    def num_evicted(self, node: Node) -> int:
        assert node.pool is not None
        return node.pool.store.stats.num_evicted


def text(seed: object, num_blocks: int) -> str:
    """Letters, a token each, that fill this many blocks and one token of the next."""
    return "".join(random.Random(repr(seed)).choices(string.ascii_letters, k=num_blocks * BLOCK + 1))


@asynccontextmanager
async def service(directory: Path, **pool_settings: Any) -> AsyncIterator[Service]:
    """Pools of `POOL_BLOCKS` blocks in both datacenters."""
    pool_bytes = POOL_BLOCKS * whole_charge(tiny_model("llama", num_pages=1).layout)
    settings = {"pool_bytes": pool_bytes, **pool_settings}
    async with served_tiny(directory, num_pages=NUM_PAGES, pool_settings=settings) as tiny:
        yield Service(tiny.client, tiny.dcs, tiny.parts, tiny.metrics)


async def test_pinned_prefixes_outlive_a_flood_until_they_are_deleted(tmp_path: Path) -> None:
    async with service(tmp_path, pin_share=0.5) as suite:
        kept, dropped = text("kept", PREFIX_BLOCKS), text("dropped", PREFIX_BLOCKS)
        await suite.keep(kept)
        dropped_id = await suite.keep(dropped)
        await suite.flood(1)
        assert await suite.cached_blocks(kept + text("question", 1)) == PREFIX_BLOCKS

        async with suite.client.delete(f"/v1/prefixes/{dropped_id}") as response:
            assert response.status == 200
        await suite.flood(2)
        assert await suite.cached_blocks(kept + text("another question", 1)) == PREFIX_BLOCKS
        assert await suite.cached_blocks(dropped + text("question", 1)) == 0


async def test_of_a_prompt_of_whole_blocks_the_second_request_computes_one_token(tmp_path: Path) -> None:
    async with service(tmp_path) as suite:
        whole = text("whole", 4)[:-1]
        assert await suite.cached_tokens(whole) == 0  # prefill computes three blocks, decode the fourth
        assert suite.dcs.prefill.metric("prefill_computed_blocks_total") == 3

        await until(lambda: suite.parts.index.num_blocks()[WorkerId("cachepool-west")] == 4)
        assert await suite.cached_tokens(whole) == 4 * BLOCK - 1
        assert await suite.cached_tokens(whole + "more") == 4 * BLOCK
        assert suite.dcs.prefill.metric("prefill_computed_blocks_total") == 3


@pytest.mark.parametrize("quota", [0.5, 1.0])
async def test_a_flood_leaves_another_tenant_what_is_within_its_quota(tmp_path: Path, quota: float) -> None:
    async with service(tmp_path, tenant_quota=quota) as suite:
        prompt = text("careful", PREFIX_BLOCKS)
        assert await suite.cached_blocks(prompt, cache_salt="careful") == 0
        await suite.flood(3, cache_salt="greedy")
        left = await suite.cached_blocks(prompt, cache_salt="careful")
        assert left == (PREFIX_BLOCKS if quota < 1 else 0)
