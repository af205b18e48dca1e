"""Attention of steps whose other operators are PyTorch's, through attention.c."""

import ctypes
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from shared.model.attention.base import Attention
from shared.model.layers.batch import Batch
from shared.model.native.structures import (
    KINDS,
    NativeAttentionCall,
    NativeAttentionShape,
    NativePages,
    NativeSpan,
    address,
    spans_of,
)
from shared.model.pages.kv import PagedKv


class NativeAttention(Attention):
    """For the models that `decoder.supports`.

    A row's result does not depend, to the last bit, on the other rows of its step, nor on how its prompt was cut.
    """

    name = "C kernels"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._spans: WeakKeyDictionary[Batch, ctypes.Array[NativeSpan]] = WeakKeyDictionary()

    def forward(self, q: Tensor, layer: int, batch: Batch, kv: PagedKv, scale: float, window: int | None) -> Tensor:
        """As the interface has it. Raises `RuntimeError` when memory is short, as PyTorch does."""
        keys, table = kv.keys_of(layer), batch.block_table(kv.group_of(layer))
        _, page_tokens, num_kv_heads, head_dim = keys.shape
        spans = self._spans.get(batch)
        if spans is None:
            spans = self._spans[batch] = spans_of(batch.spans)
        q = q.contiguous()
        out = torch.empty_like(q)
        pages = NativePages(
            address(keys), address(kv.values_of(layer)), KINDS[keys.dtype], page_tokens, num_kv_heads, head_dim
        )
        num_heads, width, kind = q.shape[1], q.stride(0), KINDS[q.dtype]
        call = NativeAttentionCall(
            ctypes.pointer(pages), address(table), address(q), address(out), width, width, kind, kind,
            table.shape[1], scale,
        )  # fmt: skip
        threads = torch.get_num_threads()
        shape = NativeAttentionShape(spans, len(spans), num_heads, num_kv_heads, head_dim, window or 0, threads)
        if self._library.prfaas_attention(ctypes.byref(call), ctypes.byref(shape)) != 0:
            raise RuntimeError(f"no memory for the attention of {batch.num_tokens} rows")
        return out
