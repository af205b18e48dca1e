"""Attention by flash-attn 3, for Hopper GPUs: the one module that imports its `flash_attn_interface`.

One function does all: `flash_attn_with_kvcache` reads pages of any size through block tables, and takes spans of any
length through `cu_seqlens_q`, a decode step's as a batch of one query each.
https://github.com/Dao-AILab/flash-attention/blob/main/hopper/flash_attn_interface.py
Pages are loaded by the bulk tensor copy engine when they hold a multiple of the kernel's key tile, which is 128 for
heads of 64 and 128 (`tile_size_fwd_sm90` in hopper/tile_size.h); other sizes take a slower path.

The project publishes its sources only; wheels of them are built by others (docs/results/gpu-details.md).
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from shared.errors import ModelFileError, SettingsError
from shared.model.attention.base import Attention
from shared.model.layers.batch import Batch
from shared.model.pages.kv import PagedKv

PAGE_TOKENS = 128
_MAX_HEAD_DIM = 256


class FlashAttention3(Attention):
    """Raises `SettingsError` when flash-attn 3 is not installed or the cache does not suit it."""

    name = "flash-attn 3"
    page_tokens = PAGE_TOKENS
    can_be_captured = True
    can_capture_ragged = True

    def __init__(self) -> None:
        try:
            import flash_attn_interface
        except ImportError as error:
            raise SettingsError(f"flash-attn 3 cannot be imported ({error}); use PRFAAS_ATTENTION=sdpa") from error
        self._flash: Any = flash_attn_interface
        self._tables: WeakKeyDictionary[Batch, dict[int, Tensor]] = WeakKeyDictionary()

    def forward(self, q: Tensor, layer: int, batch: Batch, kv: PagedKv, scale: float, window: int | None) -> Tensor:
        _check(q)
        whole = {} if batch.is_decode else {
            "cu_seqlens_q": batch.query_starts,
            "max_seqlen_q": batch.max_queries,
        }  # fmt: skip
        attended: Tensor = self._flash.flash_attn_with_kvcache(
            q[:, None] if batch.is_decode else q,
            kv.keys_of(layer),
            kv.values_of(layer),
            cache_seqlens=batch.lengths,
            page_table=self._table(batch, kv.group_of(layer)),
            softmax_scale=scale,
            causal=True,
            window_size=(-1, -1) if window is None else (window - 1, 0),
            **whole,
        )
        return attended[:, 0] if batch.is_decode else attended

    def _table(self, batch: Batch, group: int) -> Tensor:
        """Return the block table. Entries before a window are never followed; they name a page that exists all the
        same."""
        tables = self._tables.setdefault(batch, {})
        if group not in tables:
            tables[group] = batch.block_table(group).clamp(min=0)
        return tables[group]


def _check(q: Tensor) -> None:
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise SettingsError(f"flash-attn needs bfloat16 or float16, not {q.dtype}; use PRFAAS_ATTENTION=sdpa")
    if q.shape[-1] > _MAX_HEAD_DIM or q.shape[-1] % 8:
        raise ModelFileError(f"flash-attn does not support a head size of {q.shape[-1]}; use PRFAAS_ATTENTION=sdpa")
