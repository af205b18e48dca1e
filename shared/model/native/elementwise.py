"""`Operations` through elementwise.c: each in one pass over memory, where PyTorch takes up to ten."""

import ctypes

import torch
from torch import Tensor

from shared.model.files.config import Activation
from shared.model.layers.operations import KvTarget, Operations
from shared.model.layers.rotary import RotaryTables
from shared.model.native.structures import KINDS, NativePages, address


class NativeOperations(Operations):
    """For dense CPU tensors whose widths are multiples of 16 (`decoder.supports`)."""

    def __init__(self, library: ctypes.CDLL, eps: float, dtype: torch.dtype) -> None:
        super().__init__(eps, dtype)
        self._library = library

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        out = torch.empty_like(x, dtype=self.dtype)
        rows, cols = x.shape
        self._library.prfaas_norm(
            KINDS[self.dtype], _at(x), _at(weight), _at(out), ctypes.c_int64(rows), cols, self._eps(), _threads()
        )
        return out

    def add(self, hidden: Tensor, delta: Tensor, norm: Tensor | None) -> Tensor:
        rows, cols = hidden.shape
        self._library.prfaas_add(
            KINDS[delta.dtype], _at(hidden), _at(delta), _at(norm), ctypes.c_int64(rows), cols, self._eps(), _threads()
        )
        return hidden

    def gate(self, gate_up: Tensor, activation: Activation) -> Tensor:
        rows, inner = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(rows, inner)
        gelu = activation != "silu"
        self._library.prfaas_gate(
            KINDS[out.dtype], gelu, _at(gate_up), _at(out), ctypes.c_int64(rows), inner, _threads()
        )
        return out

    def rotate(self, qkv: Tensor, num_heads: int, norm: Tensor | None, tables: RotaryTables, kv: KvTarget) -> Tensor:
        _, page_tokens, num_kv_heads, head_dim = kv.keys.shape
        kind = KINDS[qkv.dtype]
        pages = NativePages(address(kv.keys), address(kv.values), kind, page_tokens, num_kv_heads, head_dim)
        queries = qkv.new_empty(qkv.shape[0], num_heads, head_dim)
        self._library.prfaas_rotate(
            kind,
            _at(qkv),
            _at(norm),
            _at(tables.cos),
            _at(tables.sin, offset=head_dim // 2),  # the second half has the sine without a minus
            _at(kv.slots),
            ctypes.byref(pages),
            _at(queries),
            ctypes.c_int64(qkv.shape[0]),
            num_heads,
            self._eps(),
            _threads(),
        )
        return queries

    def _eps(self) -> ctypes.c_float:
        return ctypes.c_float(self.eps)


def _at(tensor: Tensor | None, offset: int = 0) -> ctypes.c_void_p:
    base = address(tensor)
    return ctypes.c_void_p(None if base is None or tensor is None else base + offset * tensor.element_size())


def _threads() -> int:
    return torch.get_num_threads()
