"""What a layer does between its matrix products, behind one interface, and its reference in PyTorch."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, rms_norm, silu

from shared.model.files.config import Activation
from shared.model.layers.rotary import RotaryTables, rotate


class KvTarget(NamedTuple):
    """Where a step's K and V of one layer go."""

    keys: Tensor  # [num_pages, page_tokens, num_kv_heads, head_dim]
    values: Tensor
    slots: Tensor  # [num_tokens] int64: page * page_tokens + offset, below 0: nowhere


class Operations(ABC):
    """Elementwise work on `[num_tokens, width]`.

    Hidden states are float32, whatever the model's `dtype`, which is that of what matrices are multiplied with: sums of
    many layers in bfloat16 would lose more than all of their products do.
    """

    def __init__(self, eps: float, dtype: torch.dtype) -> None:
        self.eps = eps
        self.dtype = dtype

    @abstractmethod
    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return RMSNorm(x) * weight in the model's dtype; both arguments are float32."""

    @abstractmethod
    def add(self, hidden: Tensor, delta: Tensor, norm: Tensor | None) -> Tensor:
        """Return `hidden + delta`, with `delta` normed first where `norm` is given; changes `hidden` in place."""

    def add_and_norm(
        self, hidden: Tensor, delta: Tensor, norm: Tensor | None, next_norm: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what `add` returns, and its norm: one pass over memory where a device is better off with that."""
        hidden = self.add(hidden, delta, norm)
        return hidden, self.norm(hidden, next_norm)

    @abstractmethod
    def gate(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """Return `activation(gate) * up` `[num_tokens, inner]` for the two halves of `gate_up`, which may change."""

    @abstractmethod
    def rotate(self, qkv: Tensor, num_heads: int, norm: Tensor | None, tables: RotaryTables, kv: KvTarget) -> Tensor:
        """Norm (`[num_heads + num_kv_heads, head_dim]`, if given) and rotate queries and keys.

        Stores keys and values in their slots and returns the queries `[num_tokens, num_heads, head_dim]`.
        """


class TorchOperations(Operations):
    """Works on every device."""

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight.shape, weight, self.eps).to(self.dtype)

    def add(self, hidden: Tensor, delta: Tensor, norm: Tensor | None) -> Tensor:
        if norm is not None:
            delta = rms_norm(delta.to(torch.float32), norm.shape, norm, self.eps)
        return hidden.add_(delta)

    def gate(self, gate_up: Tensor, activation: Activation) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        active = silu(gate) if activation == "silu" else gelu(gate, approximate="tanh")
        return active.mul_(up)

    def rotate(self, qkv: Tensor, num_heads: int, norm: Tensor | None, tables: RotaryTables, kv: KvTarget) -> Tensor:
        num_kv_heads, head_dim = kv.keys.shape[-2:]
        heads = qkv.view(qkv.shape[0], -1, head_dim)
        rotated = heads[:, : num_heads + num_kv_heads]
        if norm is not None:
            normed = rms_norm(rotated.to(torch.float32), (head_dim,), None, self.eps)
            rotated = (normed * norm).to(qkv.dtype)
        rotated = rotate(rotated, tables)
        stored = kv.slots >= 0
        slots = kv.slots[stored]
        kv.keys.flatten(0, 1).index_copy_(0, slots, rotated[stored, num_heads:])
        kv.values.flatten(0, 1).index_copy_(0, slots, heads[stored, num_heads + num_kv_heads :])
        return rotated[:, :num_heads]
