"""Entries survive the way from pages to bytes and back."""

import numpy as np
import pytest
import torch

from shared.kv.tensors import entry_rows, entry_to_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip_through_slices_of_pages(dtype: torch.dtype) -> None:
    pages = torch.randn(2, 4, 128, 2, 8).to(dtype)  # k/v, pages, page tokens, heads, dim
    k, v = pages[0, 1, 64:128], pages[1, 1, 64:128]
    raw = entry_to_bytes(k, v)
    assert len(raw) == 2 * 64 * 2 * 8 * dtype.itemsize
    target = torch.zeros_like(pages)
    blocks = target.view(2, 8, 64, 2, 8)  # two in a page
    entry_rows(blocks)[:, 6] = np.frombuffer(raw, dtype=np.uint8).reshape(2, -1)
    assert torch.equal(target[0, 3, :64], k)
    assert torch.equal(target[1, 3, :64], v)
    assert target[:, 3, 64:].abs().sum() == 0
    assert target[:, :3].abs().sum() == 0
