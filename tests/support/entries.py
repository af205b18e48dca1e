"""An entry's bytes as the wire has them, straight from pages: what staging and landing are compared with."""

import torch


def entry_bytes(entry: torch.Tensor) -> bytes:
    """Return the bytes of one entry, `[num_parts, block_tokens, num_heads, head_dim]`."""
    return entry.contiguous().cpu().view(torch.uint8).numpy().tobytes()
