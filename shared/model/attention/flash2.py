"""Attention by flash-attn 2: the one module that imports it.

Prefill spans go through `flash_attn_varlen_func`, decode spans (one token) through `flash_attn_with_kvcache`, both
reading the pages through block tables. flash-attn wants CUDA, float16 or bfloat16, and pages of a multiple of 256
tokens: https://github.com/Dao-AILab/flash-attention/blob/v2.8.3/flash_attn/flash_attn_interface.py
("page_block_size must be a multiple of 256"; block_table is int32, `[batch_size, max_num_blocks_per_seq]`).

With a window the kernels start at the first tile that the window touches (`n_block_min` in
https://github.com/Dao-AILab/flash-attention/blob/v2.8.3/csrc/flash_attn/src/flash_fwd_kernel.h). Tiles divide pages, so
table entries before the window's first page are never followed; they still name a page that exists, to be safe.
"""

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from shared.errors import ModelFileError, SettingsError
from shared.model.attention.base import Attention
from shared.model.layers.batch import Batch
from shared.model.pages.kv import PagedKv

PAGE_TOKENS = 256
_MAX_HEAD_DIM = 256


class _Part(NamedTuple):
    """The spans that one kernel call covers."""

    rows: Tensor | None  # of the step's tokens; None: all of them, in order
    spans: Tensor | None  # [num_spans] int64, their numbers; None: all
    lengths: Tensor  # [num_spans] int32, of the sequences after this step
    query_starts: Tensor  # [num_spans + 1] int32
    key_starts: Tensor  # [num_spans + 1] int32
    max_queries: int
    max_keys: int
    block_tables: dict[int, Tensor]  # per page group, [num_spans, most pages] int32; made when first asked for


class FlashAttention(Attention):
    """Raises `SettingsError` when flash-attn is not installed or the cache does not suit it."""

    page_tokens = PAGE_TOKENS
    can_be_captured = True

    def __init__(self) -> None:
        try:
            import flash_attn
        except ImportError as error:
            raise SettingsError(f"flash-attn cannot be imported ({error}); use PRFAAS_ATTENTION=sdpa") from error
        self._flash: Any = flash_attn
        self.name = f"flash-attn {getattr(flash_attn, '__version__', '2')}"
        self._parts: WeakKeyDictionary[Batch, tuple[_Part | None, _Part | None]] = WeakKeyDictionary()

    def forward(self, q: Tensor, layer: int, batch: Batch, kv: PagedKv, scale: float, window: int | None) -> Tensor:
        _check(q, kv)
        if batch not in self._parts:
            self._parts[batch] = _split(batch)
        prefill, decode = self._parts[batch]
        options = {
            "softmax_scale": scale,
            "causal": True,
            "window_size": (-1, -1) if window is None else (window - 1, 0),
        }
        keys, values, group = kv.keys_of(layer), kv.values_of(layer), kv.group_of(layer)
        out = torch.empty_like(q)
        if prefill is not None:
            attended = self._flash.flash_attn_varlen_func(
                _take(q, prefill.rows),
                keys,
                values,
                cu_seqlens_q=prefill.query_starts,
                cu_seqlens_k=prefill.key_starts,
                max_seqlen_q=prefill.max_queries,
                max_seqlen_k=prefill.max_keys,
                block_table=_block_table(prefill, batch, group),
                **options,
            )
            _put(out, prefill.rows, attended)
        if decode is not None:
            attended = self._flash.flash_attn_with_kvcache(
                _take(q, decode.rows)[:, None],
                keys,
                values,
                cache_seqlens=decode.lengths,
                block_table=_block_table(decode, batch, group),
                **options,
            )
            _put(out, decode.rows, attended[:, 0])
        return out


def _check(q: Tensor, kv: PagedKv) -> None:
    if kv.page_tokens % PAGE_TOKENS:
        raise SettingsError(f"flash-attn needs pages of a multiple of {PAGE_TOKENS} tokens, not {kv.page_tokens}")
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise SettingsError(f"flash-attn needs bfloat16 or float16, not {q.dtype}; use PRFAAS_ATTENTION=sdpa")
    if q.shape[-1] > _MAX_HEAD_DIM or q.shape[-1] % 8:
        raise ModelFileError(f"flash-attn does not support a head size of {q.shape[-1]}; use PRFAAS_ATTENTION=sdpa")


def _split(batch: Batch) -> tuple[_Part | None, _Part | None]:
    """Sort a step's spans into prefill and decode, with the tensors that describe each to the kernels."""
    if batch.is_decode:
        return None, _decode_part(batch)
    prefill = [i for i, span in enumerate(batch.spans) if span.num_tokens > 1]
    decode = [i for i, span in enumerate(batch.spans) if span.num_tokens == 1]
    return _part(batch, prefill), _part(batch, decode)


def _decode_part(batch: Batch) -> _Part:
    """All spans, described by the batch's own tensors: nothing comes from the host, so that a graph can replay it."""
    unused = batch.lengths[:0]
    return _Part(None, None, batch.lengths, unused, unused, 1, 0, {})


def _part(batch: Batch, chosen: list[int]) -> _Part | None:
    if not chosen:
        return None
    device = batch.positions.device
    starts = [0]
    for span in batch.spans:
        starts.append(starts[-1] + span.num_tokens)
    spans = [batch.spans[i] for i in chosen]
    rows = None
    if len(chosen) < len(batch.spans):
        rows = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in chosen]).to(device)

    def int32(values: list[Any]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    queries, ends = [span.num_tokens for span in spans], [span.end for span in spans]
    return _Part(
        rows=rows,
        spans=torch.tensor(chosen, device=device),
        lengths=int32(ends),
        query_starts=int32([sum(queries[:i]) for i in range(len(queries) + 1)]),
        key_starts=int32([sum(ends[:i]) for i in range(len(ends) + 1)]),
        max_queries=max(queries),
        max_keys=max(ends),
        block_tables={},
    )


def _block_table(part: _Part, batch: Batch, group: int) -> Tensor:
    if group not in part.block_tables:
        table = batch.block_table(group)
        chosen = table if part.spans is None else table.index_select(0, part.spans)
        part.block_tables[group] = chosen.clamp(min=0)
    return part.block_tables[group]


def _take(q: Tensor, rows: Tensor | None) -> Tensor:
    return q.contiguous() if rows is None else q.index_select(0, rows)


def _put(out: Tensor, rows: Tensor | None, part: Tensor) -> None:
    if rows is None:
        out.copy_(part)
    else:
        out.index_copy_(0, rows, part)
