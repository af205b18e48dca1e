"""`Operations` on NVIDIA GPUs, by Triton kernels; each is compiled at its first call for a size."""

import torch
import triton
from torch import Tensor

from shared.model.cuda import kernels
from shared.model.files.config import Activation
from shared.model.layers.operations import KvTarget, Operations
from shared.model.layers.rotary import RotaryTables

_GATE_BLOCK = 1024
_HEADS_PER_PROGRAM = 16


class CudaOperations(Operations):
    """Rows are contiguous. Launches and returns: nothing here waits for the device."""

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        rows, width = x.shape
        out = torch.empty(rows, width, dtype=self.dtype, device=x.device)
        if rows:
            kernels.norm[(rows,)](x, weight, out, width, self.eps, **_row(width))
        return out

    def add(self, hidden: Tensor, delta: Tensor, norm: Tensor | None) -> Tensor:
        self._add(hidden, delta, norm, None)
        return hidden

    def add_and_norm(
        self, hidden: Tensor, delta: Tensor, norm: Tensor | None, next_norm: Tensor
    ) -> tuple[Tensor, Tensor]:
        return hidden, self._add(hidden, delta, norm, next_norm)

    def gate(self, gate_up: Tensor, activation: Activation) -> Tensor:
        rows, inner = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty(rows, inner, dtype=gate_up.dtype, device=gate_up.device)
        if rows:
            grid = (rows, triton.cdiv(inner, _GATE_BLOCK))
            kernels.gate[grid](gate_up, out, inner, GELU=activation != "silu", BLOCK=_GATE_BLOCK, num_warps=4)
        return out

    def rotate(self, qkv: Tensor, num_heads: int, norm: Tensor | None, tables: RotaryTables, kv: KvTarget) -> Tensor:
        rows = qkv.shape[0]
        num_kv_heads, head_dim = kv.keys.shape[-2:]
        if rows:
            grid = (rows, triton.cdiv(num_heads + 2 * num_kv_heads, _HEADS_PER_PROGRAM))
            kernels.rotate[grid](
                qkv,
                qkv if norm is None else norm,
                tables.cos,
                tables.sin,
                kv.slots,
                kv.keys,
                kv.values,
                self.eps,
                num_heads,
                num_kv_heads,
                HAS_NORM=norm is not None,
                HALF=head_dim // 2,
                HALF_BLOCK=triton.next_power_of_2(head_dim // 2),
                HEADS=_HEADS_PER_PROGRAM,
                num_warps=4,
            )
        return qkv.view(rows, -1, head_dim)[:, :num_heads]

    def _add(self, hidden: Tensor, delta: Tensor, norm: Tensor | None, next_norm: Tensor | None) -> Tensor:
        rows, width = hidden.shape
        out = hidden if next_norm is None else torch.empty(rows, width, dtype=self.dtype, device=hidden.device)
        if rows:
            kernels.add_norm[(rows,)](
                hidden,
                delta,
                hidden if norm is None else norm,
                hidden if next_norm is None else next_norm,
                out,
                width,
                self.eps,
                NORM_DELTA=norm is not None,
                NORM_SUM=next_norm is not None,
                **_row(width),
            )
        return out


def _row(width: int) -> dict[str, int]:
    """A program that holds a whole row: 16 elements or so a thread."""
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 512))}
