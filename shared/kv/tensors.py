"""Entries between pages and bytes: the one module of `shared.kv` that knows torch."""

import numpy as np
import torch
from numpy.typing import NDArray


def entry_to_bytes(*parts: torch.Tensor) -> bytes:
    """Return one entry's bytes: its parts, each `[block_tokens, num_heads, head_dim]`, in C order."""
    return b"".join([_host_bytes(part).data for part in parts])


def entry_rows(blocks: torch.Tensor) -> NDArray[np.uint8]:
    """Return a layer's pages in host memory as bytes, `[parts, all blocks, bytes of a part]`: a view.

    `blocks` is `[parts, all blocks, block_tokens, num_heads, head_dim]`; entry i is `[:, i]`.
    """
    return blocks.view(*blocks.shape[:2], -1).view(torch.uint8).numpy()


def _host_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    return _view_bytes(tensor.cpu())


def _view_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """A block's rows lie together in their page, so that this is a view."""
    return tensor.view(-1).view(torch.uint8).numpy()
