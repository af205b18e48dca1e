"""Sequences in pages, computed step by step: what the sections have in common."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.kv.layout import Dtype
from shared.model.attention.base import Attention
from shared.model.files.config import ModelConfig
from shared.model.layers.batch import Batch, Span
from shared.model.pages.groups import PageGroups
from shared.model.pages.kv import PagedKv
from shared.model.pages.reservation import Reservation
from shared.model.transformer import Transformer

from benchmarks.device.shapes import BLOCK_TOKENS  # isort: skip

DTYPE_NAMES: dict[torch.dtype, Dtype] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def pages_for(
    config: ModelConfig, attention: Attention, model: Transformer, lengths: Iterable[int], stride: int | None = None
) -> PagedKv:
    """Return a cache with room for sequences of these lengths."""
    page_tokens = max(BLOCK_TOKENS, attention.page_tokens)
    layout = config.kv_layout(BLOCK_TOKENS, DTYPE_NAMES[model.dtype])
    groups = PageGroups.of(layout)
    num_pages = sum(groups.pages_needed(length, stride, page_tokens) for length in lengths)
    return PagedKv(layout, num_pages, page_tokens, model.device)


def reserve(kv: PagedKv, num_tokens: int, stride: int | None = None) -> Reservation:
    reservation = kv.reserve([], num_tokens, stride)
    assert reservation is not None, "the cache was made for it"
    return reservation


@dataclass(frozen=True)
class Sequences:
    """Token ids and the pages of each."""

    token_ids: Sequence[Sequence[int]]
    reservations: Sequence[Reservation]
    kv: PagedKv

    @classmethod
    def of(cls, token_ids: Sequence[Sequence[int]], kv: PagedKv) -> "Sequences":
        return cls(token_ids, [reserve(kv, len(ids)) for ids in token_ids], kv)

    def step(self, model: Transformer, parts: Sequence[tuple[int, int, int]]) -> list[Tensor]:
        """Compute tokens `[first, end)` of sequences, packed; return the hidden states of each part."""
        spans, ids = self._laid_out(parts)
        batch = Batch.build(spans, self.kv.page_tokens, model.device, ids)
        hidden = model.forward(batch.token_ids, batch, self.kv)
        return list(torch.split(hidden, [end - first for _, first, end in parts]))

    def decode(self, model: Transformer, position: Sequence[int]) -> Tensor:
        """Compute one token of each sequence; return hidden states `[sequences, hidden_size]`."""
        return self.last_states(model, [(i, at, at + 1) for i, at in enumerate(position)])

    def last_states(self, model: Transformer, parts: Sequence[tuple[int, int, int]]) -> Tensor:
        """Compute tokens `[first, end)` of sequences as an engine's step; return the state after each part."""
        spans, ids = self._laid_out(parts)
        return model.step(ids, spans, self.kv).hidden

    def _laid_out(self, parts: Sequence[tuple[int, int, int]]) -> tuple[list[Span], list[int]]:
        spans = [Span(self.reservations[i].tables, first, end - first) for i, first, end in parts]
        return spans, [token for i, first, end in parts for token in self.token_ids[i][first:end]]
