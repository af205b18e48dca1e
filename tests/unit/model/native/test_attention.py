"""Attention in C: against a softmax in float64, and to the last bit against itself, however a step is put together."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.kv.layout import KvLayout, LayerSpec
from shared.model.layers.batch import Batch, Span
from shared.model.native.attention import NativeAttention
from shared.model.pages.groups import first_page_needed
from shared.model.pages.kv import PagedKv
from tests.support.kernels import kernels


@dataclass
class Scene:
    """Sequences of given lengths in scattered pages; all memory that holds none of their positions is NaN."""

    lengths: list[int]
    heads: int
    kv_heads: int
    head_dim: int
    page_tokens: int = 64
    window: int | None = None
    dtype: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        self.scale = self.head_dim**-0.5
        generator = torch.Generator().manual_seed(0)
        counts = [-(-length // self.page_tokens) for length in self.lengths]
        layer = LayerSpec(None, self.kv_heads, self.head_dim)
        name: Any = str(self.dtype).removeprefix("torch.")
        self.kv = PagedKv(KvLayout((layer,), name, self.page_tokens), sum(counts) + 1, self.page_tokens)
        order = torch.randperm(sum(counts) + 1, generator=generator).tolist()
        self.tables = [[order.pop() for _ in range(count)] for count in counts]
        self.keys, self.values = (
            [torch.randn(length, self.kv_heads, self.head_dim, generator=generator) for length in self.lengths]
            for _ in range(2)
        )
        for pool, sequences in ((self.kv.keys_of(0), self.keys), (self.kv.values_of(0), self.values)):
            pool.fill_(torch.nan)
            for number, sequence in enumerate(sequences):
                sequences[number] = sequence.to(self.dtype)
                for position, entry in enumerate(sequences[number]):
                    page, offset = divmod(position, self.page_tokens)
                    pool[self.tables[number][page], offset] = entry
        self.queries = [
            torch.randn(length, self.heads, self.head_dim, generator=generator).to(self.dtype)
            for length in self.lengths
        ]

    def attend(self, spans: list[tuple[int, int, int]]) -> list[Tensor]:
        """Return what spans (sequence, start, end) of one step get. Tables lack the pages that no window reaches."""
        step = []
        for number, start, end in spans:
            first = first_page_needed(self.window, start, self.page_tokens) if self.window else 0
            table = [-1] * first + self.tables[number][first:]
            step.append(Span([table], start, end - start, stores=False))
        q = torch.cat([self.queries[number][start:end] for number, start, end in spans])
        batch = Batch.build(step, self.page_tokens)
        out = NativeAttention(kernels()).forward(q, 0, batch, self.kv, self.scale, self.window)
        return list(torch.split(out, [span.num_tokens for span in step]))

    def expected(self, number: int, start: int, end: int) -> Tensor:
        """Return `[end - start, heads, head_dim]`, a softmax under a mask."""
        group = self.heads // self.kv_heads
        k, v = (t[number][:end].double().repeat_interleave(group, 1) for t in (self.keys, self.values))
        scores = torch.einsum("qhd,khd->hqk", self.queries[number][start:end].double(), k) * self.scale
        q_at, k_at = torch.arange(start, end)[:, None], torch.arange(end)
        hidden = (k_at > q_at) | (k_at <= q_at - (self.window or end))
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


SHAPES = [(9, 3, 64), (4, 4, 16), (4, 1, 256), (40, 1, 48), (6, 2, 80), (8, 8, 128), (3, 1, 512)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float32, 1e-5)])
@pytest.mark.parametrize("window", [None, 1, 100, 200])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), SHAPES)
def test_equals_a_softmax(
    heads: int, kv_heads: int, head_dim: int, window: int | None, dtype: torch.dtype, tolerance: float
) -> None:
    scene = Scene([290, 1, 401, 128], heads, kv_heads, head_dim, 16, window, dtype)
    spans = [(0, 0, 290), (1, 0, 1), (2, 380, 401), (3, 127, 128)]
    for span, actual in zip(spans, scene.attend(spans), strict=True):
        torch.testing.assert_close(actual.double(), scene.expected(*span), atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), SHAPES)
def test_a_row_is_the_same_alone(
    heads: int, kv_heads: int, head_dim: int, window: int | None, dtype: torch.dtype
) -> None:
    scene = Scene([300, 270], heads, kv_heads, head_dim, 128, window, dtype)
    together = scene.attend([(0, 0, 300), (1, 200, 270)])
    for row in (0, 1, 63, 64, 127, 128, 129, 255, 256, 299):
        assert torch.equal(scene.attend([(0, row, row + 1)])[0][0], together[0][row]), f"row {row}"
    for row in (200, 254, 255, 256, 269):
        assert torch.equal(scene.attend([(1, row, row + 1)])[0][0], together[1][row - 200]), f"row {row}"


@settings(max_examples=40)
@given(data=st.data(), window=st.sampled_from([None, 1, 130]), page_tokens=st.sampled_from([16, 64, 128]))
def test_any_cut_into_steps_gives_the_same_bits(data: st.DataObject, window: int | None, page_tokens: int) -> None:
    """The same rows in one span or many, in any company, with any number of threads."""
    scene = Scene([520, 260], 3, 1, 32, page_tokens, window)
    whole = [scene.attend([(number, 0, length)])[0] for number, length in enumerate(scene.lengths)]
    cuts = [
        sorted({0, length, *data.draw(st.lists(st.integers(1, length - 1), max_size=5))}) for length in scene.lengths
    ]
    spans = [(n, start, end) for n, cut in enumerate(cuts) for start, end in pairwise(cut)]
    spans = data.draw(st.permutations(spans))
    try:
        torch.set_num_threads(data.draw(st.integers(1, 3)))
        together = scene.attend(spans)
        apart = [scene.attend([span])[0] for span in spans]
    finally:
        torch.set_num_threads(1)
    for (number, start, end), *found in zip(spans, together, apart, strict=True):
        for rows in found:
            assert torch.equal(rows, whole[number][start:end])


def test_a_long_context_is_cut_between_threads() -> None:
    """A single row whose chunks wait in memory equals the last row of a span that sums them at once."""
    scene = Scene([5000], 9, 3, 64)
    try:
        torch.set_num_threads(4)
        alone = scene.attend([(0, 4999, 5000)])[0]
    finally:
        torch.set_num_threads(1)
    block = scene.attend([(0, 4800, 5000)])[0]
    assert torch.equal(alone[0], block[-1])
    torch.testing.assert_close(alone.double(), scene.expected(0, 4999, 5000), atol=0.01, rtol=0)


def test_scores_of_any_size() -> None:
    """Neither overflow nor a sum of nothing: one key takes all, wherever it is."""
    scene = Scene([300], 2, 1, 16, dtype=torch.float32)
    scene.queries[0].fill_(30)
    for position in (0, 130, 299):
        keys = scene.kv.keys_of(0)
        page, offset = divmod(position, 64)
        kept = keys[scene.tables[0][page], offset].clone()
        keys[scene.tables[0][page], offset] = 500
        actual = scene.attend([(0, 299, 300)])[0]
        torch.testing.assert_close(actual[0], scene.values[0][position].expand(2, -1))
        keys[scene.tables[0][page], offset] = kept
