"""Entries between pages and bytes: the one module of `shared.kv` that knows torch."""

import numpy as np
import torch
from numpy.typing import NDArray


def entry_to_bytes(k: torch.Tensor, v: torch.Tensor) -> bytes:
    """Return one entry's bytes, K then V, each `[block_tokens, num_kv_heads, head_dim]` in C order."""
    return b"".join((_host_bytes(k).data, _host_bytes(v).data))


def entry_rows(blocks: torch.Tensor) -> NDArray[np.uint8]:
    """Return a layer's pages in host memory as bytes, `[2, all blocks, half an entry]`: a view.

    `blocks` is `[2, all blocks, block_tokens, num_kv_heads, head_dim]`; entry i is `[:, i]`.
    """
    return blocks.view(2, blocks.shape[1], -1).view(torch.uint8).numpy()


def _host_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    return _view_bytes(tensor.cpu())


def _view_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """A block's rows lie together in their page, so that this is a view."""
    return tensor.view(-1).view(torch.uint8).numpy()
