"""Entries survive the way from pages to bytes and back."""

import pytest
import torch

from shared.kv.tensors import entry_to_bytes, write_entry


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip_through_slices_of_pages(dtype: torch.dtype) -> None:
    pages = torch.randn(2, 4, 128, 2, 8).to(dtype)  # k/v, pages, page tokens, heads, dim
    k, v = pages[0, 1, 64:128], pages[1, 1, 64:128]
    raw = entry_to_bytes(k, v)
    assert len(raw) == 2 * 64 * 2 * 8 * dtype.itemsize
    target = torch.zeros_like(pages)
    write_entry(raw, target[0, 3, :64], target[1, 3, :64])
    assert torch.equal(target[0, 3, :64], k)
    assert torch.equal(target[1, 3, :64], v)
    assert target[:, 3, 64:].abs().sum() == 0
    assert target[:, :3].abs().sum() == 0
