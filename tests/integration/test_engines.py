"""Prefill in the east, decode in the west, pools in between: the same tokens as one process, whatever happens."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs
from torch import Tensor

from shared.errors import BadRequest
from shared.kv.codec import Codec, Fidelity
from shared.kv.frame import Frame
from shared.model.layers.batch import Batch
from shared.model.pages.kv import PagedKv
from shared.proto import prfaas_pb2 as pb
from tests.support.engines import Node, TwoDatacenters, two_datacenters
from tests.support.gate import Gate
from tests.support.tiny import MODELS, greedy_reference, prompt
from tests.support.waiting import LIMIT_S, until

BLOCK = 64
EDGES = [1, 63, 64, 65, 127, 128, 129, 200, 577]


@pytest.mark.parametrize("name", MODELS)
async def test_tokens_equal_one_process_at_block_and_window_edges(name: str) -> None:
    async with two_datacenters(name) as dcs:
        for num_tokens in EDGES:
            tokens = prompt(num_tokens, seed=num_tokens)
            result = await dcs.generate(tokens)
            assert result.ids == greedy_reference(name, tokens, 8), f"{num_tokens} tokens"
            assert result.decode_computed == (num_tokens - 1) % BLOCK + 1
            assert result.prefill_computed == num_tokens - result.decode_computed
        await dcs.assert_idle()


@pytest.mark.parametrize("name", MODELS)
async def test_fully_half_and_not_cached_give_the_same_tokens(name: str) -> None:
    async with two_datacenters(name) as dcs:
        tokens = prompt(500)
        expected = greedy_reference(name, tokens, 70)  # crosses a block edge while generating
        assert (await dcs.generate(tokens[:260], 1)).prefill_computed == 256
        half = await dcs.generate(tokens, 70)
        full = await dcs.generate(tokens, 70, prefill=False)
        assert (half.ids, full.ids) == (expected, expected)
        # What the device has of the last block is copied; Gemma's windows were slid on, its blocks come from the pool.
        assert (half.cached(500), full.cached(500)) == (256, 499 if name == "llama" else BLOCK * (499 // BLOCK))


@pytest.mark.parametrize("name", MODELS)
async def test_the_next_turn_finds_all_that_was_generated(name: str) -> None:
    async with two_datacenters(name) as dcs:
        tokens = prompt(100)
        first = await dcs.generate(tokens, 100)
        await dcs.assert_idle()  # publishing has ended
        conversation = tokens + first.ids + prompt(10, seed=5)
        assert dcs.pool_west.pool is not None
        assert dcs.pool_west.pool.store.stats.num_blocks == 199 // BLOCK  # the last token has no KV yet
        again = await dcs.generate(conversation, 4, prefill=False, wait_ms=0)
        assert again.cached(len(conversation)) == 199
        assert again.ids == greedy_reference(name, conversation, 4)


@pytest.mark.parametrize("codec", [Codec.LZ4, Codec.ZSTD])
async def test_lossless_codecs_change_nothing_but_the_bytes(codec: Codec) -> None:
    async with two_datacenters("llama") as dcs:
        tokens = prompt(300)
        result = await dcs.generate(tokens, codec=codec)
        assert result.ids == greedy_reference("llama", tokens, 8)


@pytest.mark.parametrize("codec", [Codec.INT8, Codec.INT4])
async def test_lossy_blocks_are_used_by_those_who_allow_the_loss_and_by_nobody_else(codec: Codec) -> None:
    fidelity = codec.spec.fidelity
    async with two_datacenters("llama") as dcs:
        tokens = prompt(300)
        await dcs.prefill_only(tokens, codec, fidelity=fidelity)
        lossy = await dcs.generate(tokens, 4, prefill=False, codec=codec, fidelity=fidelity)
        assert lossy.decode_computed == 300 - 4 * BLOCK
        assert len(lossy.ids) == 4
        await dcs.assert_idle()
        exact = await dcs.generate(tokens, prefill=False, wait_ms=0)
        assert exact.decode_computed == 300
        assert exact.ids == greedy_reference("llama", tokens, 8)


async def test_a_codec_that_loses_more_than_asked_for_is_refused() -> None:
    async with two_datacenters("llama") as dcs:
        for codec, fidelity in ((Codec.INT8, Fidelity.LOSSLESS), (Codec.INT4, Fidelity.INT8)):
            with pytest.raises(BadRequest):
                await dcs.prefill_only(prompt(300), codec, fidelity=fidelity)
            with pytest.raises(ExceptionGroup) as failed:
                await dcs.generate(prompt(300), prefill=False, codec=codec, fidelity=fidelity)
            assert failed.group_contains(BadRequest)


@pytest.mark.parametrize("name", MODELS)
async def test_decode_computes_what_never_comes(name: str) -> None:
    async with two_datacenters(name) as dcs:
        tokens = prompt(333)
        nobody = await dcs.generate(tokens, prefill=False, wait_ms=50)
        assert nobody.decode_computed == 333
        assert nobody.ids == greedy_reference(name, tokens, 8)
        await dcs.assert_idle()


@pytest.mark.parametrize("name", MODELS)
async def test_prompts_that_part_within_a_block_compute_what_differs(name: str) -> None:
    """The end of a prompt, the middle of another's block, and another tenant's, who shares nothing."""
    async with two_datacenters(name) as dcs:
        system = prompt(100)
        await dcs.generate(system, 1, prefill=False, num_blocks=0)
        for seed, shared in ((1, 100), (2, 100)):
            tokens = [*system, *prompt(20 + seed, seed=seed)]
            result = await dcs.generate(tokens, prefill=False, num_blocks=0)
            assert result.cached(len(tokens)) == shared
            assert result.ids == greedy_reference(name, tokens, 8)
        tokens = [*system[:80], *prompt(50, seed=3)]
        parted = await dcs.generate(tokens, prefill=False, num_blocks=0)
        assert parted.cached(130) == 80
        assert parted.ids == greedy_reference(name, tokens, 8)
        await dcs.assert_idle()
        stranger = await dcs.generate(tokens, prefill=False, num_blocks=0, salt="another")
        assert stranger.cached(130) == 0


@pytest.mark.parametrize("name", MODELS)
async def test_prompts_at_one_moment_compute_what_they_share_once_on_decode_alone(name: str) -> None:
    """The first may leave while others wait for it; then the next one computes."""
    async with two_datacenters(name) as dcs:
        prompts = [[*prompt(400), *prompt(30 + seed, seed=seed)] for seed in range(4)]
        results = await asyncio.gather(*(dcs.generate(p, prefill=False, num_blocks=0) for p in prompts))
        assert [r.ids for r in results] == [greedy_reference(name, p, 8) for p in prompts]
        assert sum(r.decode_computed for r in results) == sum(map(len, prompts)) - 3 * 6 * BLOCK
        await dcs.assert_idle()
        again = [[*prompt(600, seed=9), *prompt(30 + seed, seed=seed)] for seed in range(3)]
        gone, *others = [asyncio.create_task(dcs.generate(p, prefill=False, num_blocks=0)) for p in again]
        await asyncio.sleep(0.02)
        gone.cancel()
        for result, tokens in zip(await asyncio.gather(*others), again[1:], strict=True):
            assert result.ids == greedy_reference(name, tokens, 8)
        await asyncio.wait({gone})
        await dcs.assert_idle()


async def test_decode_uses_blocks_on_its_device_that_nobody_told_the_gateway_of() -> None:
    async with two_datacenters("llama") as dcs:
        tokens = prompt(333)
        await dcs.generate(tokens)
        alone = await dcs.generate(tokens, num_blocks=0)
        assert alone.decode_computed == 1
        assert alone.ids == greedy_reference("llama", tokens, 8)


async def test_a_failed_prefill_ends_the_waiting_at_once() -> None:
    async with two_datacenters("llama") as dcs:
        tokens = prompt(333)
        async with asyncio.timeout(LIMIT_S):
            result = await dcs.generate(tokens, prefill=False, wait_ms=60_000, prefill_failed_after_s=0.1)
        assert result.decode_computed == 333
        assert result.ids == greedy_reference("llama", tokens, 8)


async def test_eight_prompts_at_once_do_not_mix() -> None:
    async with two_datacenters("gemma3") as dcs:
        prompts = [prompt(80 + 53 * i, seed=i) for i in range(8)]
        results = await asyncio.gather(*(dcs.generate(p, 12) for p in prompts))
        assert [r.ids for r in results] == [greedy_reference("gemma3", p, 12) for p in prompts]
        await dcs.assert_idle()


async def test_a_shared_prefix_is_computed_stored_and_carried_once() -> None:
    async with two_datacenters("llama") as dcs:
        shared = prompt(640)
        prompts = [shared + prompt(40 + i, seed=i) for i in range(3)]
        results = await asyncio.gather(*(dcs.generate(p) for p in prompts))
        assert [r.ids for r in results] == [greedy_reference("llama", p, 8) for p in prompts]
        assert dcs.prefill.metric("prefill_computed_blocks_total") == 10
        layers = 4
        assert dcs.pool_east.metric("entries_published_total") == 10 * layers
        assert dcs.pool_west.metric("pulled_entries_total", peer=dcs.pool_east.address) == 10 * layers
        await dcs.assert_idle()


async def test_sampling_depends_on_seed_and_position_only() -> None:
    async with two_datacenters("llama") as dcs:
        tokens = prompt(150)
        alone = await dcs.generate(tokens, 20, temperature=1.0, seed=7)
        noisy, *_ = await asyncio.gather(
            dcs.generate(tokens, 20, temperature=1.0, seed=7),
            *(dcs.generate(prompt(90, seed=i), 20, temperature=1.0, seed=i) for i in range(3)),
        )
        # A second worker that goes on after ten tokens gives the same text.
        resumed = await dcs.generate(tokens + alone.ids[:10], 10, temperature=1.0, seed=7)
        assert noisy.ids == alone.ids
        assert resumed.ids == alone.ids[10:]
        assert len(set(alone.ids)) > 5


@pytest.mark.parametrize("where", ["pool_east", "pool_west"])
async def test_corrupt_entries_are_never_decoded_from(where: str) -> None:
    async with two_datacenters("llama") as dcs:
        tokens = prompt(333)
        await dcs.prefill_only(tokens)
        await dcs.pull_west(tokens) if where == "pool_west" else None
        store = getattr(dcs, where).pool.store
        for block in list(store._shelf)[2:4]:
            block.frames[1].payload.obj[0] ^= 1
        result = await dcs.generate(tokens, prefill=False, wait_ms=0)
        assert result.ids == greedy_reference("llama", tokens, 8)
        # What precedes the first bad block; or all, since the west's pool pulls again what it was made to forget.
        assert result.cached(333) == (2 if where == "pool_east" else 5) * BLOCK
        if where == "pool_west":
            assert dcs.decode.metric("corrupt_entries_total") == 2
            assert dcs.pool_west.metric("corrupt_frames_total", source="memory") == 2  # found when it was doubted
        await dcs.assert_idle()


async def test_a_client_that_vanishes_while_queued_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_datacenters("llama", num_pages=12) as dcs:
        _slow_down(dcs.decode, monkeypatch, seconds=0.01)
        running = asyncio.create_task(dcs.generate(prompt(500), 20))  # 9 of 12 pages
        await until(lambda: dcs.decode.metric("num_requests_running") == 1)
        await _vanish(dcs.generate(prompt(500, seed=1), 20), lambda: dcs.decode.metric("num_requests_waiting") == 1)
        await until(lambda: dcs.decode.metric("num_requests_waiting") == 0)
        assert (await running).ids == greedy_reference("llama", prompt(500), 20)
        await dcs.assert_idle()


@pytest.mark.parametrize("point", ["at once", "prefill", "transfer", "tail", "decode"])
async def test_a_client_that_vanishes_leaves_nothing_behind(point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_datacenters("llama") as dcs:
        tokens = prompt(700)
        if point == "prefill":
            _slow_down(dcs.prefill, monkeypatch, seconds=0.05)
        elif point == "transfer":
            await dcs.prefill_only(tokens)
            _slow_down_sending(dcs.pool_east, monkeypatch)
        elif point == "tail":
            await dcs.prefill_only(tokens)
            _slow_down(dcs.decode, monkeypatch, seconds=0.2)
        elif point == "decode":
            _slow_down(dcs.decode, monkeypatch, seconds=0.005)
        await _vanish(dcs.generate(tokens, 500), partial(_is_in_the_middle, dcs, point))
        await dcs.assert_idle()
        monkeypatch.undo()
        again = prompt(130, seed=3)
        assert (await dcs.generate(again)).ids == greedy_reference("llama", again, 8)


def _is_in_the_middle(dcs: TwoDatacenters, point: str) -> bool:
    num_generated = dcs.decode.metric("generation_tokens_total")
    return {
        "at once": True,
        "prefill": 0 < dcs.pool_east.metric("entries_published_total") < 40,
        "transfer": 0 < dcs.pool_west.metric("pulled_entries_total", peer=dcs.pool_east.address) < 40,
        "tail": dcs.decode.metric("num_requests_running") > 0 and num_generated == 0,
        "decode": 0 < num_generated < 500,
    }[point]


async def _vanish(request: Coroutine[Any, Any, object], when: Callable[[], bool]) -> None:
    task = asyncio.create_task(request)
    await asyncio.sleep(0)  # let it begin
    await until(when)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_requests_wait_for_pages_in_turn() -> None:
    async with two_datacenters("llama", num_pages=12) as dcs:  # 768 tokens
        prompts = [prompt(300 + i, seed=i) for i in range(5)]
        results = await asyncio.gather(*(dcs.generate(p, 20) for p in prompts))
        assert [r.ids for r in results] == [greedy_reference("llama", p, 20) for p in prompts]
        await dcs.assert_idle()


async def test_layers_stream_while_later_layers_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_datacenters("llama", chunk_tokens=128) as dcs:
        assert dcs.prefill.model is not None
        gate = Gate(dcs.prefill.model.transformer, monkeypatch)
        tokens = prompt(257)  # two chunks of two blocks, in four layers
        with capture_logs() as logs:
            generating = asyncio.create_task(dcs.generate(tokens))
            gate.let()  # layer 0 of the first chunk
            await until(lambda: dcs.pool_east.metric("entries_published_total") == 2)
            gate.let(4)
            await until(lambda: dcs.decode.metric("fetched_entries_total") == 2 * 4 + 2)
            assert gate.num_begun == 6, "the second chunk has three layers to come"
            gate.open()
            result = await generating
        assert result.ids == greedy_reference("llama", tokens, 8)
        prefilled = next(line for line in logs if line["event"] == "prompt_prefilled")
        tail = next(line for line in logs if line["event"] == "tail_computed")
        assert prefilled["first_entry_sent_at_s"] < prefilled["computed_at_s"]
        assert tail["gate_opened_at_s"] < prefilled["last_entry_sent_at_s"]


def _slow_down(node: Node, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let every layer that an engine computes take longer, in its torch thread."""
    assert node.model is not None
    transformer = node.model.transformer
    compute, compute_several = transformer.layer, transformer.layers

    def layer(index: int, hidden: Tensor, batch: Batch, kv: PagedKv, kv_only: bool) -> Tensor:
        time.sleep(seconds)
        return compute(index, hidden, batch, kv, kv_only)

    def layers(first: int, end: int, hidden: Tensor, batch: Batch, kv: PagedKv) -> Tensor:
        time.sleep(seconds * (end - first))
        return compute_several(first, end, hidden, batch, kv)

    monkeypatch.setattr(transformer, "layer", layer)
    monkeypatch.setattr(transformer, "layers", layers)


def _slow_down_sending(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a pool send a few entries at a time, with pauses: a slow link."""
    assert node.pool is not None
    send = node.pool.servicer._send

    async def slowly(frames: list[Frame], context: Any) -> None:
        for start in range(0, len(frames), 2):
            await asyncio.sleep(0.1)
            await send(frames[start : start + 2], context)

    monkeypatch.setattr(node.pool.servicer, "_send", slowly)


async def test_stop_tokens_end_a_generation_but_not_before_min_tokens() -> None:
    async with two_datacenters("llama") as dcs:
        tokens = prompt(70)
        free = await dcs.generate(tokens, 20, temperature=1.0, seed=1)
        stop = free.ids[5]
        stopped = await dcs.generate(tokens, 20, temperature=1.0, seed=1, stop_token_ids=[stop])
        first = free.ids.index(stop)
        assert (stopped.ids, stopped.finish_reason) == (free.ids[: first + 1], pb.FINISH_REASON_STOP)
        longer = await dcs.generate(tokens, 20, temperature=1.0, seed=1, stop_token_ids=[stop], min_tokens=10)
        assert len(longer.ids) > 10
        assert stop not in longer.ids[:10]
        assert (await dcs.generate(tokens, 3)).finish_reason == pb.FINISH_REASON_LENGTH
