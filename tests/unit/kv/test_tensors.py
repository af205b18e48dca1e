"""Pages as bytes: a view, in which an entry's parts are rows."""

import numpy as np
import pytest
import torch

from shared.kv.tensors import entry_rows
from tests.support.entries import entry_bytes


@pytest.mark.parametrize("num_parts", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_entry_is_read_and_written_in_place(dtype: torch.dtype, num_parts: int) -> None:
    blocks = torch.randn(num_parts, 8, 64, 2, 8).to(dtype)
    raw = entry_rows(blocks)[:, 3].tobytes()
    assert raw == entry_bytes(blocks[:, 3])
    assert len(raw) == num_parts * 64 * 2 * 8 * dtype.itemsize
    target = torch.zeros_like(blocks)
    entry_rows(target)[:, 6] = np.frombuffer(raw, dtype=np.uint8).reshape(num_parts, -1)
    assert torch.equal(target[:, 6], blocks[:, 3])
    assert target[:, :6].abs().sum() == 0
    assert target[:, 7:].abs().sum() == 0
