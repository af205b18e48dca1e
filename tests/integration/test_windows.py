"""Window layers hold their window, not the context: in prefill, in decode, and while the pool is slow."""

import asyncio
from typing import Any

import numpy as np
import pytest
import torch

from services.prefill.prompt_pages import PromptPages
from shared.kv.frame import open_frame
from shared.model.layers.batch import Batch, Span
from shared.model.pages.reservation import Reservation
from tests.support.engines import Node, two_datacenters
from tests.support.sending import send_slowly, send_when
from tests.support.tiny import greedy_reference, prompt, tiny_model

BLOCK, CHUNK, WINDOW = 64, 128, 100  # the tiny Gemma has one full layer and three window layers, in four page groups
LONG = 1900
FULL_PAGES = LONG // BLOCK + 1


class Watched:
    """The most pages that sequences of an engine held at a time."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        assert node.model is not None
        self.most = self.slides = 0
        kv = node.model.kv
        cover, slide = kv.cover, kv.slide

        def covered(reservation: Reservation, first: int, end: int) -> bool:
            granted = cover(reservation, first, end)
            self.most = max(self.most, sum(kv._pool.is_used(page) for page in range(kv.num_pages)))
            return granted

        def slid(reservation: Reservation, position: int, stride: int | None = None) -> None:
            self.slides += 1
            slide(reservation, position, stride)

        monkeypatch.setattr(kv, "cover", covered)
        monkeypatch.setattr(kv, "slide", slid)


async def test_a_long_prompt_holds_its_full_layers_and_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = prompt(LONG)
    async with two_datacenters("gemma3", num_pages=62) as dcs:  # the context in all layers would be 120
        prefill, decode = Watched(dcs.prefill, monkeypatch), Watched(dcs.decode, monkeypatch)
        result = await dcs.generate(tokens, 80)
        assert result.ids == greedy_reference("gemma3", tokens, 80)
        assert result.prefill_computed == LONG // BLOCK * BLOCK
        window_and_stride = 3 * ((WINDOW + 2 * CHUNK) // BLOCK + 2)
        assert FULL_PAGES <= prefill.most <= FULL_PAGES + window_and_stride
        assert decode.most <= FULL_PAGES + 80 // BLOCK + 1 + window_and_stride
        assert prefill.slides >= LONG // CHUNK
        await dcs.assert_idle()


async def test_decode_alone_slides_over_a_prompt_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = prompt(LONG, seed=1)
    async with two_datacenters("gemma3", num_pages=62) as dcs:
        decode = Watched(dcs.decode, monkeypatch)
        result = await dcs.generate(tokens, 8, prefill=False, wait_ms=50)
        assert result.decode_computed == LONG
        assert result.ids == greedy_reference("gemma3", tokens, 8)
        assert decode.slides >= LONG // CHUNK
        await dcs.assert_idle()


async def test_a_prompt_that_extends_a_cached_one_resumes_at_its_end() -> None:
    tokens = prompt(900, seed=2)
    async with two_datacenters("gemma3", num_pages=64) as dcs:
        await dcs.generate(tokens[:600], 1)
        result = await dcs.generate(tokens, 8)
        assert result.prefill_computed == 14 * BLOCK - 9 * BLOCK
        assert result.ids == greedy_reference("gemma3", tokens, 8)
        again = await dcs.generate(tokens[:400], 8)  # at its middle the pool has window entries, the device has not
        assert again.cached(400) == 6 * BLOCK
        assert again.ids == greedy_reference("gemma3", tokens[:400], 8)
        await dcs.assert_idle()


async def test_a_slow_pool_holds_prefill_back_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, others = prompt(700, seed=3), prompt(500, seed=4)
    async with two_datacenters("gemma3", num_pages=64) as dcs:
        held_back = _count_held_back(monkeypatch)
        send_when(monkeypatch, lambda: held_back)
        results = await asyncio.gather(dcs.generate(tokens), dcs.generate(others))
        assert [r.ids for r in results] == [greedy_reference("gemma3", t, 8) for t in (tokens, others)]
        _check_stored(dcs.pool_east, tokens, 10)
        _check_stored(dcs.pool_east, others, 7)
        await dcs.assert_idle()


async def test_what_decode_publishes_is_what_it_computed_however_late(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = prompt(100, seed=5)
    async with two_datacenters("gemma3", num_pages=64) as dcs:
        send_slowly(monkeypatch, 0.01)
        result = await dcs.generate(tokens, 500)
        assert result.ids == greedy_reference("gemma3", tokens, 500)
        await dcs.assert_idle()
        whole = tokens + result.ids
        published = int(dcs.decode.metric("decode_published_blocks_total"))
        assert published >= 1
        _check_stored(dcs.pool_west, whole, published + 1)  # and the block that prefill computed


def _count_held_back(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the position of a prompt each time it may not be computed any further."""
    limit, held_back = PromptPages.limit, list[int]()

    def limited(pages: PromptPages, next_token: int, end: int) -> int:
        allowed = limit(pages, next_token, end)
        if allowed <= next_token:
            held_back.append(next_token)
        return allowed

    monkeypatch.setattr(PromptPages, "limit", limited)
    return held_back


def _check_stored(pool: Node, tokens: list[int], num_blocks: int) -> None:
    """Compare what a pool holds of a text with what one pass over all of it computes."""
    model: Any = tiny_model("gemma3")
    reservation = model.kv.reserve([], len(tokens))
    batch = Batch.build([Span(reservation.tables, 0, len(tokens))], model.kv.page_tokens)
    model.transformer.forward(torch.tensor(tokens), batch, model.kv)
    assert pool.pool is not None
    stored = 0
    for index, key in enumerate(model.keys(tokens, "")):
        block = pool.pool.store._shelf.get(key)
        for layer, frame in enumerate(block.frames if block else []):
            assert frame is not None, f"block {index} lacks layer {layer}"
            expected = model.kv.block(layer, reservation, index).flatten()
            actual = torch.from_numpy(np.frombuffer(open_frame(frame), dtype=np.float32).copy())
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
        stored += block is not None
    assert stored == num_blocks
