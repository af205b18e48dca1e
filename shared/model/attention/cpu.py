"""Causal attention of a chunk over a longer context on CPUs, without a mask: past and present are computed apart."""

import torch
from torch import Tensor

# What scaled_dot_product_attention calls; this returns the log-sum-exp as well.
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def attend_past_and_present(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Return `[num_queries, num_heads, head_dim]`: the last `num_queries` positions attend to everything before them.

    `keys` and `values` are `[num_keys, num_kv_heads, head_dim]`. What lies before the chunk is seen by all of its
    queries and needs no mask, which would slow SDPA down; heads that share K and V are rows of one matrix there. The
    parts are merged by their log-sum-exps, as in flash decoding.
    """
    num_queries, num_heads, head_dim = q.shape
    num_kv_heads, past = keys.shape[1], keys.shape[0] - num_queries
    k, v = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
    present, present_lse = _flash(q.transpose(0, 1)[None], k[:, :, past:], v[:, :, past:], 0.0, True, scale=scale)
    merged: Tensor = present
    if past:
        shape = (1, num_heads, num_queries)
        folded = q.view(num_queries, num_kv_heads, -1, head_dim).permute(1, 2, 0, 3)
        rows = folded.reshape(1, num_kv_heads, -1, head_dim)
        before, before_lse = _flash(rows, k[:, :, :past], v[:, :, :past], 0.0, False, scale=scale)
        share = torch.sigmoid(before_lse.reshape(shape) - present_lse.view(shape)).to(q.dtype).unsqueeze(-1)
        merged = present.lerp(before.reshape(*shape, head_dim), share)
    return merged[0].transpose(0, 1)
