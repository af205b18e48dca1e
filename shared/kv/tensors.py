"""Pages as bytes: the one module of `shared.kv` that knows torch."""

import numpy as np
import torch
from numpy.typing import NDArray


def entry_rows(blocks: torch.Tensor) -> NDArray[np.uint8]:
    """Return a layer's pages in host memory as bytes, `[parts, all blocks, bytes of a part]`: a view.

    `blocks` is `[parts, all blocks, block_tokens, num_heads, head_dim]`; entry i is `[:, i]`.
    """
    return blocks.view(*blocks.shape[:2], -1).view(torch.uint8).numpy()
