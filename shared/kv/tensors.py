"""Entries between pages and bytes: the one module of `shared.kv` that knows torch."""

import numpy as np
import torch
from numpy.typing import NDArray


def entry_to_bytes(k: torch.Tensor, v: torch.Tensor) -> bytes:
    """Return one entry's bytes, K then V, each `[block_tokens, num_kv_heads, head_dim]` in C order."""
    return b"".join((_host_bytes(k).data, _host_bytes(v).data))


def write_entry(raw: bytes | memoryview, k: torch.Tensor, v: torch.Tensor) -> None:
    """Write one entry's bytes into its place in pages in host memory. `raw` has exactly the bytes of `k` and `v`."""
    half = len(raw) // 2
    for part, target in ((raw[:half], k), (raw[half:], v)):
        source = np.frombuffer(part, dtype=np.uint8)
        _view_bytes(target)[:] = source


def _host_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    return _view_bytes(tensor.cpu())


def _view_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """A block's rows lie together in their page, so that this is a view and a write through it reaches the page."""
    return tensor.view(-1).view(torch.uint8).numpy()
