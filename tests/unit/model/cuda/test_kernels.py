"""The Triton kernels against PyTorch's operators, on a GPU or in Triton's interpreter; skipped where Triton is not."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported
pytest.importorskip("triton")

from shared.model.cuda.operations import CudaOperations
from shared.model.files.config import Activation
from shared.model.layers.operations import KvTarget, TorchOperations
from shared.model.layers.rotary import rotary_tables

ROWS, EPS = 5, 1e-5
FUSED, PLAIN = CudaOperations(EPS, torch.float32), TorchOperations(EPS, torch.float32)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[-1])).to(DEVICE)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [64, 576, 640])
@pytest.mark.parametrize("with_norm", [False, True])
def test_sum_and_norm(width: int, with_norm: bool) -> None:
    hidden, delta, weight = drawn(ROWS, width), drawn(ROWS, width).cos(), drawn(width)
    norm = drawn(width).abs() if with_norm else None
    close(FUSED.norm(hidden, weight), PLAIN.norm(hidden, weight))
    expected = PLAIN.add(hidden.clone(), delta, norm)
    close(FUSED.add(hidden.clone(), delta, norm), expected)
    total, normed = FUSED.add_and_norm(hidden.clone(), delta, norm, weight)
    close(total, expected)
    close(normed, PLAIN.norm(expected, weight))


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("inner", [256, 2000])
def test_gate(activation: Activation, inner: int) -> None:
    gate_up = drawn(ROWS, 2 * inner)
    close(FUSED.gate(gate_up.clone(), activation), PLAIN.gate(gate_up.clone(), activation))


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 1, 256), (32, 8, 128), (4, 2, 16)])
@pytest.mark.parametrize("with_norm", [False, True])
def test_rotate(heads: int, kv_heads: int, dim: int, with_norm: bool) -> None:
    qkv = drawn(ROWS, (heads + 2 * kv_heads) * dim)
    norm = drawn(heads + kv_heads, dim) if with_norm else None
    frequencies = 10000.0 ** -(torch.arange(0, dim, 2, device=DEVICE) / dim)
    tables = rotary_tables(frequencies, torch.tensor([0, 5, 900, 3, 4], device=DEVICE))
    slots = torch.tensor([3, 8, 1, 20, 31], device=DEVICE)
    ours, theirs = (torch.zeros(2, 4, 8, kv_heads, dim, device=DEVICE) for _ in range(2))
    queries = FUSED.rotate(qkv.clone(), heads, norm, tables, KvTarget(ours[0], ours[1], slots))
    close(queries, PLAIN.rotate(qkv.clone(), heads, norm, tables, KvTarget(theirs[0], theirs[1], slots)))
    close(ours, theirs)


def test_a_row_without_a_slot_is_written_nowhere() -> None:
    qkv, pages = drawn(2, 4 * 16), torch.zeros(2, 1, 8, 1, 16, device=DEVICE)
    tables = rotary_tables(torch.ones(8, device=DEVICE), torch.tensor([1, 2], device=DEVICE))
    FUSED.rotate(qkv, 2, None, tables, KvTarget(pages[0], pages[1], torch.tensor([-1, 6], device=DEVICE)))
    assert pages[:, 0].abs().sum(dim=(0, 2, 3)).nonzero().flatten().tolist() == [6]
