"""SDPA against a plain softmax, and the flash-attn adapter against SDPA through a fake of the published functions."""

import sys
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import SettingsError
from shared.kv.layout import KvLayout, LayerSpec
from shared.model.attention import select
from shared.model.attention.base import Attention
from shared.model.attention.flash3 import FlashAttention3
from shared.model.attention.sdpa import SdpaAttention
from shared.model.attention.select import select_attention
from shared.model.layers.batch import Batch, Span
from shared.model.pages.groups import first_page_needed
from shared.model.pages.kv import PagedKv
from tests.unit.model import fake_flash, fake_flash3

HEADS, KV_HEADS, DIM = 4, 2, 16
SCALE = 0.3


def filled_cache(num_pages: int, page_tokens: int, dtype: torch.dtype) -> PagedKv:
    name = str(dtype).removeprefix("torch.")
    layout = KvLayout((LayerSpec(None, KV_HEADS, DIM),), name, block_tokens=page_tokens)  # type: ignore[arg-type]
    kv = PagedKv(layout, num_pages, page_tokens)
    generator = torch.Generator().manual_seed(0)
    for pool in (kv.keys_of(0), kv.values_of(0)):
        pool.copy_(torch.randn(pool.shape, generator=generator))
    return kv


def queries(batch: Batch, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch.num_tokens, HEADS, DIM, generator=generator).to(dtype)


def plain(q: torch.Tensor, batch: Batch, kv: PagedKv, window: int | None) -> torch.Tensor:
    """Softmax over an explicit mask, one query and head at a time."""
    out = torch.empty_like(q)
    row = 0
    for span in batch.spans:
        pages = list(span.tables[0])
        k, v = kv.keys_of(0)[pages].flatten(0, 1), kv.values_of(0)[pages].flatten(0, 1)
        for position in range(span.start, span.end):
            first = 0 if window is None else max(0, position - window + 1)
            for head in range(HEADS):
                group = head // (HEADS // KV_HEADS)
                weights = (k[first : position + 1, group] @ q[row, head] * SCALE).softmax(0)
                out[row, head] = weights @ v[first : position + 1, group]
            row += 1
    return out


SPANS: list[list[tuple[Sequence[int], int, int]]] = [
    [(range(5), 0, 33)],
    [(range(5), 7, 30)],
    [([4, 0, 2, 6, 1], 0, 40)],
    [([4, 0, 2, 6, 1], 39, 1)],
    [(range(5), 20, 1), ([7, 5], 3, 9), ([8, 6, 9], 0, 1)],
]


@pytest.mark.parametrize("window", [None, 1, 5, 16, 100])
@pytest.mark.parametrize("spans", SPANS)
def test_sdpa(spans: list[tuple[Sequence[int], int, int]], window: int | None) -> None:
    kv = filled_cache(10, 8, torch.float32)
    batch = Batch.build([Span([pages], start, count) for pages, start, count in spans], 8)
    q = queries(batch, torch.float32)
    actual = SdpaAttention().forward(q, 0, batch, kv, SCALE, window)
    torch.testing.assert_close(actual, plain(q, batch, kv, window), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("start", "count", "window"), [(0, 600, 40), (530, 700, 40), (530, 700, None), (1229, 1, 300)])
def test_sdpa_over_several_tiles(start: int, count: int, window: int | None) -> None:
    kv = filled_cache(20, 64, torch.float32)
    batch = Batch.build([Span([range(20)], start, count)], 64)
    q = queries(batch, torch.float32)
    actual = SdpaAttention().forward(q, 0, batch, kv, SCALE, window)
    rows = sorted({0, 1, 255, 256, 511, 512, count - 1} & set(range(count)))
    one_by_one = Batch.build([Span([range(20)], start + row, 1) for row in rows], 64)
    torch.testing.assert_close(actual[rows], plain(q[rows], one_by_one, kv, window), atol=1e-5, rtol=1e-5)


def behind_the_window(spans: list[Span], page_tokens: int, window: int) -> list[Span]:
    """Take the pages that the window does not reach out of the tables."""
    slid = []
    for span in spans:
        first = first_page_needed(window, span.start, page_tokens)
        slid.append(Span([[-1] * first + list(table)[first:] for table in span.tables], span.start, span.num_tokens))
    return slid


@settings(max_examples=60)
@given(data=st.data(), window=st.integers(1, 70))
def test_slid_tables_give_what_dense_attention_gives(data: st.DataObject, window: int) -> None:
    """Any spans on any pages of 8 tokens, against a softmax over the whole context under a mask."""
    kv = filled_cache(24, 8, torch.float32)
    pages = data.draw(st.permutations(range(24)))
    spans = []
    for part in (pages[:8], pages[8:16], pages[16:]):
        start = data.draw(st.integers(0, 63))
        spans.append(Span([part], start, data.draw(st.integers(1, 64 - start))))
    slid = behind_the_window(spans, 8, window)
    batch = Batch.build(slid, 8)
    q = queries(batch, torch.float32)
    actual = SdpaAttention().forward(q, 0, batch, kv, SCALE, window)
    torch.testing.assert_close(actual, plain(q, Batch.build(spans, 8), kv, window), atol=1e-5, rtol=1e-5)


def test_block_tables_and_slots() -> None:
    spans = [Span([[3, 5], [-1, 7]], 9, 2), Span([[1], [2]], 6, 1), Span([[4], [6]], 0, 2, stores=False)]
    batch = Batch.build(spans, 8)
    assert batch.block_table(0).tolist() == [[3, 5], [1, -1], [4, -1]]
    assert batch.block_table(1).tolist() == [[-1, 7], [2, -1], [6, -1]]
    assert batch.block_table(1).dtype == torch.int32
    assert batch.slots_of(0).tolist() == [41, 42, 14, -1, -1]
    assert batch.slots_of(1).tolist() == [57, 58, 22, -1, -1]


def test_a_span_beyond_its_pages_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Batch.build([Span([[0, 1]], 10, 7)], 8)
    with pytest.raises(ValueError, match="do not fit"):
        Batch.build([Span([[0, 1], [0, -1]], 7, 2)], 8)


@pytest.fixture
def flash2(monkeypatch: pytest.MonkeyPatch) -> Attention:
    monkeypatch.setitem(sys.modules, "flash_attn", fake_flash)
    return select_attention("flash")


@pytest.fixture
def flash3(monkeypatch: pytest.MonkeyPatch) -> Attention:
    monkeypatch.setitem(sys.modules, "flash_attn_interface", fake_flash3)
    return FlashAttention3()


@pytest.fixture(params=["flash2", "flash3"])
def flash(request: pytest.FixtureRequest) -> Attention:
    attention: Attention = request.getfixturevalue(request.param)
    return attention


FLASH_SPANS: list[list[tuple[Sequence[int], int, int]]] = [
    [(range(3), 0, 600)],
    [([2, 0, 3], 300, 290), ([1], 0, 40)],
    [([2, 0, 3], 700, 1), ([1], 17, 1)],
    [([2, 0], 400, 1), ([1, 4], 200, 100), ([5], 99, 1), ([6], 0, 3)],
]


@pytest.mark.parametrize("window", [None, 1, 64])
@pytest.mark.parametrize("spans", FLASH_SPANS)
def test_flash_equals_sdpa(flash: Attention, spans: list[tuple[Sequence[int], int, int]], window: int | None) -> None:
    kv = filled_cache(8, 256, torch.bfloat16)
    batch = Batch.build([Span([pages], start, count) for pages, start, count in spans], 256)
    q = queries(batch, torch.bfloat16)
    actual = flash.forward(q, 0, batch, kv, SCALE, window)
    expected = SdpaAttention().forward(q, 0, batch, kv, SCALE, window)
    torch.testing.assert_close(actual, expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("spans", FLASH_SPANS)
def test_flash_on_slid_tables(flash: Attention, spans: list[tuple[Sequence[int], int, int]]) -> None:
    kv = filled_cache(8, 256, torch.bfloat16)
    whole = [Span([pages], start, count) for pages, start, count in spans]
    batch = Batch.build(behind_the_window(whole, 256, 64), 256)
    q = queries(batch, torch.bfloat16)
    actual = flash.forward(q, 0, batch, kv, SCALE, 64)
    expected = SdpaAttention().forward(q, 0, Batch.build(whole, 256), kv, SCALE, 64)
    torch.testing.assert_close(actual, expected, atol=0.02, rtol=0.02)


def test_flash_reads_queries_that_are_a_slice(flash: Attention) -> None:
    """The model passes a view into the fused projection."""
    kv = filled_cache(4, 256, torch.bfloat16)
    batch = Batch.build([Span([range(2)], 0, 20)], 256)
    wide = torch.randn(20, HEADS + KV_HEADS, DIM).to(torch.bfloat16)
    actual = flash.forward(wide[:, :HEADS], 0, batch, kv, SCALE, None)
    expected = SdpaAttention().forward(wide[:, :HEADS], 0, batch, kv, SCALE, None)
    torch.testing.assert_close(actual, expected, atol=0.02, rtol=0.02)


def test_flash_2_refuses_small_pages(flash2: Attention) -> None:
    batch = Batch.build([Span([range(1)], 0, 3)], 64)
    with pytest.raises(SettingsError, match="256"):
        flash2.forward(queries(batch, torch.bfloat16), 0, batch, filled_cache(4, 64, torch.bfloat16), SCALE, None)


def test_flash_refuses_what_it_cannot_do(flash: Attention) -> None:
    batch = Batch.build([Span([range(1)], 0, 3)], 256)
    with pytest.raises(SettingsError, match="bfloat16 or float16"):
        flash.forward(queries(batch, torch.float32), 0, batch, filled_cache(4, 256, torch.float32), SCALE, None)


def test_selection() -> None:
    assert isinstance(select_attention("auto"), SdpaAttention)
    assert isinstance(select_attention("sdpa"), SdpaAttention)
    assert isinstance(select_attention("auto", "cuda", torch.float32), SdpaAttention)


@pytest.mark.parametrize(("major", "newest"), [(9, True), (8, False), (10, False)])
def test_the_gpu_decides_between_generations(
    flash2: Attention, flash3: Attention, monkeypatch: pytest.MonkeyPatch, major: int, newest: bool
) -> None:
    monkeypatch.setattr(select, "find_spec", lambda _: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, 0))
    selected = select_attention("auto", "cuda")
    assert type(selected) is type(flash3 if newest else flash2)
    assert selected.name.startswith("flash-attn")


def test_flash_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(SettingsError, match="PRFAAS_ATTENTION=sdpa"):
        select_attention("flash")
