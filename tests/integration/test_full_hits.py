"""A prompt of whole blocks that are all held is resumed at its last token, wherever they lie and whatever fails."""

import asyncio

import pytest
import torch

from services.cachepool.store.store import Store
from shared.ids import BlockKey
from tests.support.engines import TwoDatacenters, two_datacenters
from tests.support.tiny import MODELS, greedy_reference, prompt

BLOCK = 64


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


@pytest.mark.parametrize("known", [5, 4, 0])
@pytest.mark.parametrize("name", MODELS)
async def test_what_the_device_has_is_neither_fetched_nor_written_nor_sent(name: str, known: int) -> None:
    """Three requests share the device's blocks, two of them at once; a longer prompt reads the same last block.

    The plan may know of fewer blocks than the device has: what it does not know of is offered, and the pool has it.
    """
    async with two_datacenters(name) as dcs:
        tokens = prompt(5 * BLOCK)
        first = await dcs.generate(tokens, 8)
        await dcs.assert_idle()  # decode has published the last block
        before, content = traffic(dcs), last_block(dcs, tokens)
        assert min(before) > 0
        again = await asyncio.gather(*(dcs.generate(tokens, 8, prefill=False, num_blocks=known) for _ in range(2)))
        longer = [*tokens, *prompt(30, seed=1)]
        beyond = await dcs.generate(longer, 8, prefill=False, num_blocks=known)
        await dcs.assert_idle()
        assert traffic(dcs) == before
        assert all(map(torch.equal, last_block(dcs, tokens), content))
        assert [r.decode_computed for r in (first, *again, beyond)] == [BLOCK, 1, 1, 30]
        assert [r.ids for r in (first, *again)] == [greedy_reference(name, tokens, 8)] * 3
        assert beyond.ids == greedy_reference(name, longer, 8)


def traffic(dcs: TwoDatacenters) -> tuple[float, ...]:
    """Return the bytes of KV that decode's pool has received and sent."""
    return tuple(dcs.pool_west.metric(f"{name}_bytes_total") for name in ("published", "fetched"))


def last_block(dcs: TwoDatacenters, tokens: list[int]) -> list[torch.Tensor]:
    """Return a copy of K and V of all layers of a prompt's last block, as the device has them for whoever asks."""
    model = dcs.decode.model
    assert model is not None
    kv, num_blocks = model.kv, len(tokens) // BLOCK
    reservation = kv.reserve(model.keys(tokens, ""), len(tokens), latest=len(tokens) - 1)
    assert reservation is not None
    assert reservation.cached_blocks == num_blocks
    held = [t.clone() for layer in range(model.layout.num_layers) for t in kv.block(layer, reservation, num_blocks - 1)]
    kv.release(reservation)
    return held


@pytest.mark.parametrize("name", MODELS)
async def test_many_at_once_share_a_last_block_under_pressure(name: str) -> None:
    """Some give their pages up half-way and begin anew, with more tokens; others have their tails meanwhile."""
    num_pages = {"llama": 9, "gemma3": 32}[name]
    async with two_datacenters(name, num_pages=num_pages) as dcs:
        tokens = prompt(3 * BLOCK)
        await dcs.generate(tokens, 8)
        lengths = [200, 199, 198, 192, 65, 1]
        results = await asyncio.gather(*(dcs.generate(tokens, n, prefill=False, num_blocks=3) for n in lengths))
        expected = greedy_reference(name, tokens, max(lengths))
        assert [r.ids for r in results] == [expected[:n] for n in lengths]
        assert dcs.decode.metric("num_preemptions_total") > 0
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
