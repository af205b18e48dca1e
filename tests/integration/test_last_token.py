"""A prompt of whole blocks that are all held is resumed at its last token, wherever they lie and whatever fails."""

import asyncio
import random

import pytest

from services.cachepool.store import Store
from shared.ids import BlockKey
from tests.support.engines import TwoDatacenters, two_datacenters
from tests.support.tiny import MODELS, greedy_reference

BLOCK = 64


def prompt(num_tokens: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, 199) for _ in range(num_tokens)]


async def hold_in_the_east(dcs: TwoDatacenters, tokens: list[int]) -> None:
    """Let the east's pool have all blocks of a prompt of whole blocks: prefill makes those of a longer one."""
    await dcs.prefill_only([*tokens, 1])


@pytest.mark.parametrize("name", MODELS)
async def test_blocks_of_a_pool_leave_the_last_token(name: str) -> None:
    async with two_datacenters(name) as dcs:
        for num_blocks in (1, 2, 3, 9):  # Gemma's windows are of 100 tokens
            tokens = prompt(num_blocks * BLOCK, seed=num_blocks)
            await hold_in_the_east(dcs, tokens)
            result = await dcs.generate(tokens, 70, prefill=False, num_blocks=num_blocks)
            assert result.decode_computed == 1
            assert result.ids == greedy_reference(name, tokens, 70), f"{num_blocks} blocks"
        assert dcs.decode.metric("missing_entries_total") == 0
        await dcs.assert_idle()


@pytest.mark.parametrize("name", MODELS)
async def test_what_the_device_has_is_not_written_to(name: str) -> None:
    """Three requests share the device's blocks, two of them at once; a longer prompt reads the same last block."""
    async with two_datacenters(name) as dcs:
        tokens = prompt(5 * BLOCK)
        first = await dcs.generate(tokens, 8)
        await dcs.assert_idle()  # decode has published the last block
        again = await asyncio.gather(*(dcs.generate(tokens, 8, prefill=False, num_blocks=5) for _ in range(2)))
        longer = [*tokens, *prompt(30, seed=1)]
        beyond = await dcs.generate(longer, 8, prefill=False, num_blocks=5)
        assert [r.decode_computed for r in (first, *again, beyond)] == [BLOCK, 1, 1, 30]
        assert [r.ids for r in (first, *again)] == [greedy_reference(name, tokens, 8)] * 3
        assert beyond.ids == greedy_reference(name, longer, 8)
        await dcs.assert_idle()


@pytest.mark.parametrize(
    ("name", "computed"),
    [("llama", BLOCK), ("gemma3", 4 * BLOCK)],  # of its windows only what the end of the prompt sees was asked for
)
async def test_a_last_block_that_is_gone_is_computed(name: str, computed: int) -> None:
    async with two_datacenters(name) as dcs:
        tokens = prompt(4 * BLOCK)
        await dcs.prefill_only(tokens)  # three blocks
        result = await dcs.generate(tokens, 8, prefill=False, num_blocks=4, wait_ms=0)
        assert result.decode_computed == computed
        assert result.ids == greedy_reference(name, tokens, 8)
        await dcs.assert_idle()


@pytest.mark.parametrize("layer", [0, 3])
async def test_a_last_block_that_comes_corrupt_is_computed(layer: int) -> None:
    """In the last layer the tail has run the others already, over entries that it overwrites then."""
    async with two_datacenters("llama") as dcs:
        tokens = prompt(4 * BLOCK)
        await hold_in_the_east(dcs, tokens)
        assert dcs.pool_east.pool is not None
        assert dcs.decode.model is not None
        corrupt(dcs.pool_east.pool.store, dcs.decode.model.keys(tokens, "")[-1], layer)
        result = await dcs.generate(tokens, 8, prefill=False, num_blocks=4, wait_ms=0)
        assert result.decode_computed == BLOCK
        assert result.ids == greedy_reference("llama", tokens, 8)
        await dcs.assert_idle()


def corrupt(store: Store, key: BlockKey, layer: int) -> None:
    """Damage one entry where a pool keeps it."""
    block = store._shelf.get(key)
    assert block is not None
    frame = block.frames[layer]
    assert frame is not None
    block.frames[layer] = frame._replace(payload=bytes([frame.payload[0] ^ 1]) + bytes(frame.payload[1:]))
