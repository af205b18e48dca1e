"""Blocks that are held up, at a worker or on a link: decode computes what is late, and answers with the same tokens."""

import asyncio
import random
import string
from pathlib import Path

import pytest
from torch import Tensor

from shared.model.layers.batch import Batch
from shared.model.pages.kv import PagedKv
from shared.step_profile import StepProfile
from tests.support.engines import Node, Result, TwoDatacenters, two_datacenters
from tests.support.events import report_steps
from tests.support.gate import Gate
from tests.support.holding_up import HeldLink, PatienceClock
from tests.support.served import served_tiny
from tests.support.tiny import MODELS, greedy_reference, prompt
from tests.support.waiting import LIMIT_S, until

BLOCK, LAYERS = 64, 4
CHUNK_BLOCKS, NUM_BLOCKS = 2, 4
TOKENS = prompt(NUM_BLOCKS * BLOCK + 1)
NUM_ENTRIES = NUM_BLOCKS * LAYERS
ANY_MS = 1
"""A patience, where a test tells its time."""
AMPLE_MS = int(1000 * LIMIT_S)


def gate_of(node: Node, monkeypatch: pytest.MonkeyPatch) -> Gate:
    assert node.model is not None
    return Gate(node.model.transformer, monkeypatch)


def passes_of(node: Node, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return the list that tells, from now on, through which layers an engine has passed a tail that waits for more."""
    assert node.model is not None
    passed: list[tuple[int, int]] = []
    compute = node.model.transformer.layers

    def layers(first: int, end: int, hidden: Tensor, batch: Batch, kv: PagedKv) -> Tensor:
        after = compute(first, end, hidden, batch, kv)
        passed.append((first, end))
        return after

    monkeypatch.setattr(node.model.transformer, "layers", layers)
    return passed


async def check_all_is_cached(dcs: TwoDatacenters) -> None:
    """Check that nothing is held, and that whoever asks again is spared all but the last token."""
    await dcs.assert_idle()
    again = await dcs.generate(TOKENS, 12, prefill=False, wait_ms=0)
    assert again.ids == greedy_reference(dcs.name, TOKENS, 12)
    assert again.cached(len(TOKENS)) >= NUM_BLOCKS * BLOCK
    assert again.num_rescues == 0
    await dcs.assert_idle()


@pytest.mark.parametrize("name", MODELS)
async def test_what_comes_in_time_is_not_computed_again(name: str) -> None:
    async with two_datacenters(name) as dcs:
        result = await dcs.generate(TOKENS, patience_ms=AMPLE_MS)
        assert result.ids == greedy_reference(name, TOKENS, 8)
        assert (result.num_rescues, result.decode_computed, result.prefill_computed) == (0, 1, NUM_BLOCKS * BLOCK)
        await dcs.assert_idle()


@pytest.mark.parametrize("name", MODELS)
async def test_decode_does_the_work_of_a_worker_that_stands_still(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The patience is real here. The prefill is called off, as the gateway does, while it computes its first layer."""
    async with two_datacenters(name) as dcs:
        gate = gate_of(dcs.prefill, monkeypatch)
        result = await dcs.generate(TOKENS, patience_ms=50)
        assert result.ids == greedy_reference(name, TOKENS, 8)
        assert (result.num_rescues, result.decode_computed) == (1, len(TOKENS))
        assert dcs.pool_east.metric("entries_published_total") == 0
        gate.open()
        await check_all_is_cached(dcs)


@pytest.mark.parametrize("name", MODELS)
async def test_leading_blocks_that_have_landed_are_kept_and_late_ones_do_no_harm(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The late ones come while decode generates: into its pool, and into the pages of a reader with more patience."""
    async with two_datacenters(name) as dcs:
        gate, clock = gate_of(dcs.prefill, monkeypatch), PatienceClock(monkeypatch)
        late, patient = Result(), asyncio.create_task(dcs.generate(TOKENS, 70, prefill=False))
        prefilling = asyncio.create_task(dcs.prefill_only(TOKENS))
        gate.let(LAYERS)  # a chunk of two blocks
        # What follows it needs the full layer of both, and no windows: those of the blocks behind them count.
        landed = 2 * CHUNK_BLOCKS * (LAYERS if name == "llama" else 1)
        generating = asyncio.create_task(dcs.generate(TOKENS, 70, prefill=False, patience_ms=ANY_MS, result=late))
        await until(lambda: dcs.decode.metric("fetched_entries_total") == landed)
        await clock.pass_half()
        await clock.pass_last_half()
        await until(lambda: late.num_rescues)
        gate.open()
        assert (await patient).ids == (await generating).ids == greedy_reference(name, TOKENS, 70)
        # The blocks in hand are no beginning for a model with windows: its prompt is computed anew.
        kept = CHUNK_BLOCKS * BLOCK if name == "llama" else 0
        assert (late.num_rescues, late.decode_computed) == (1, len(TOKENS) - kept)
        assert (patient.result().num_rescues, patient.result().decode_computed) == (0, 1)
        assert await prefilling == NUM_BLOCKS * BLOCK
        await check_all_is_cached(dcs)


@pytest.mark.parametrize("num_layers", [0, 1, 3])
async def test_a_tail_that_has_begun_begins_anew_when_the_link_stops(
    num_layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries come layer by layer: no block is complete, though most of all blocks has come."""
    async with two_datacenters("llama") as dcs:
        await dcs.prefill_only(TOKENS)
        link, clock = HeldLink(dcs.pool_east, monkeypatch, num_layers * NUM_BLOCKS), PatienceClock(monkeypatch)
        passed, result = passes_of(dcs.decode, monkeypatch), Result()
        generating = asyncio.create_task(dcs.generate(TOKENS, 12, prefill=False, patience_ms=ANY_MS, result=result))
        await until(lambda: dcs.decode.metric("fetched_entries_total") == num_layers * NUM_BLOCKS)
        await until(lambda: not num_layers or (passed and passed[-1][1] == num_layers))
        await clock.pass_half()
        await clock.pass_last_half()
        await until(lambda: result.num_rescues)
        await link.open()
        assert (await generating).ids == greedy_reference("llama", TOKENS, 12)
        assert (result.num_rescues, result.decode_computed) == (1, len(TOKENS))
        assert dcs.decode.metric("missing_entries_total") == NUM_ENTRIES - num_layers * NUM_BLOCKS
        await check_all_is_cached(dcs)


async def test_a_link_that_goes_on_in_the_last_half_of_the_patience_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two_datacenters("llama") as dcs:
        await dcs.prefill_only(TOKENS)
        link, clock = HeldLink(dcs.pool_east, monkeypatch, 0), PatienceClock(monkeypatch)
        generating = asyncio.create_task(dcs.generate(TOKENS, prefill=False, patience_ms=ANY_MS))
        await clock.pass_half()
        await link.let(NUM_ENTRIES * 3 // 4)
        await until(lambda: dcs.decode.metric("fetched_entries_total") == NUM_ENTRIES * 3 // 4)
        await clock.pass_half()
        await link.open()
        result = await generating
        assert result.ids == greedy_reference("llama", TOKENS, 8)
        assert (result.num_rescues, result.decode_computed) == (0, 1)
        await dcs.assert_idle()


@pytest.mark.parametrize("point", ["waits", "computes"])
async def test_a_client_that_vanishes_around_a_rescue_leaves_nothing_behind(
    point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_datacenters("llama") as dcs:
        await dcs.prefill_only(TOKENS)
        link, clock = HeldLink(dcs.pool_east, monkeypatch, NUM_BLOCKS), PatienceClock(monkeypatch)
        passed, result = passes_of(dcs.decode, monkeypatch), Result()
        generating = asyncio.create_task(dcs.generate(TOKENS, 500, prefill=False, patience_ms=ANY_MS, result=result))
        await until(lambda: dcs.decode.metric("fetched_entries_total") == NUM_BLOCKS)
        await until(lambda: passed)  # the tail's first layer, beside the transfer
        if point == "computes":
            await clock.pass_half()
            await clock.pass_last_half()
            await until(lambda: result.num_rescues)
        generating.cancel()
        await asyncio.wait({generating})
        assert generating.cancelled()
        assert result.finish_reason == 0
        await link.open()
        await check_all_is_cached(dcs)


async def test_the_gateway_ends_the_wait_for_a_worker_that_has_become_slow(tmp_path: Path) -> None:
    """The whole way: the plan's patience, the real engines, the answer, and what is counted."""
    text = "".join(random.Random(1).choices(string.ascii_letters, k=len(TOKENS)))
    body = {"prompt": text, "max_tokens": 12, "ignore_eos": True, "temperature": 0}
    async with served_tiny(tmp_path) as tiny:
        workers = ("prefill-east", "decode-west")
        report_steps(tiny.parts.registry, *workers, profile=StepProfile(1e-4, 1e-5, num_steps=10))
        with pytest.MonkeyPatch.context() as held_up:
            gate = gate_of(tiny.dcs.prefill, held_up)
            rescued = await tiny.complete(**body)
            gate.open()
            await tiny.dcs.assert_idle()
        assert tiny.metric("rescues_total", kind="remote") == 1
        assert tiny.dcs.decode.metric("decode_computed_prompt_tokens_total") == len(TOKENS)
        report_steps(tiny.parts.registry, *workers, profile=StepProfile(0.1, 0.1, num_steps=10))
        in_time = await tiny.complete(**body, cache_salt="another")  # shares nothing with the first
        await tiny.dcs.assert_idle()
        assert in_time["choices"][0]["text"] == rescued["choices"][0]["text"]
        assert tiny.metric("rescues_total", kind="remote") == 1
        assert tiny.dcs.decode.metric("decode_computed_prompt_tokens_total") == len(TOKENS) + 1
