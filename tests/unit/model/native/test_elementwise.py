"""The fused operations against PyTorch's, in both dtypes and with sizes that leave the threads uneven shares."""

import pytest
import torch
from torch import Tensor

from shared.model.files.config import Activation
from shared.model.layers.operations import KvTarget, TorchOperations
from shared.model.layers.rotary import rotary_tables
from shared.model.native.elementwise import NativeOperations
from tests.support.kernels import kernels

EPS = 1e-6


def both(dtype: torch.dtype) -> tuple[TorchOperations, NativeOperations]:
    return TorchOperations(EPS, dtype), NativeOperations(kernels(), EPS, dtype)


DTYPES = [torch.float32, torch.bfloat16]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal up to one unit in the last place: sums of squares may be added up in another order."""
    assert actual.dtype == expected.dtype
    rtol = 2e-6 if actual.dtype == torch.float32 else 2**-7
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=rtol)
    if actual.dtype == torch.bfloat16:
        assert (actual == expected).float().mean() > 0.9


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm(dtype: torch.dtype) -> None:
    reference, native = both(dtype)
    x, weight = random(37, 80), random(80, seed=1)
    assert_same(native.norm(x, weight), reference.norm(x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normed", [False, True])
def test_add(dtype: torch.dtype, normed: bool) -> None:
    reference, native = both(dtype)
    hidden, delta = random(37, 80), random(37, 80, dtype=dtype, seed=1)
    norm = random(80, seed=2) if normed else None
    assert_same(native.add(hidden.clone(), delta, norm), reference.add(hidden, delta, norm))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gate(dtype: torch.dtype, activation: Activation) -> None:
    reference, native = both(dtype)
    gate_up = random(37, 96, dtype=dtype)
    gate_up[0, :6] = torch.tensor([0, -100, 100, -1e-3, 30, -30])
    assert_same(native.gate(gate_up.clone(), activation), reference.gate(gate_up, activation))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normed", [False, True])
def test_rotate_writes_keys_and_values(dtype: torch.dtype, normed: bool) -> None:
    reference, native = both(dtype)
    heads, kv_heads, dim, tokens = 6, 2, 32, 21
    qkv = random(tokens, (heads + 2 * kv_heads) * dim, dtype=dtype)
    norm = random(heads + kv_heads, dim, seed=1) if normed else None
    frequencies = 1.0 / 10_000 ** (torch.arange(0, dim, 2) / dim)
    tables = rotary_tables(frequencies, torch.arange(100, 100 + tokens))
    slots = torch.randperm(5 * 8, generator=torch.Generator().manual_seed(2))[:tokens]
    empty = torch.zeros(5, 8, kv_heads, dim, dtype=dtype)
    targets = [KvTarget(empty.clone(), empty.clone(), slots) for _ in range(2)]
    actual = native.rotate(qkv, heads, norm, tables, targets[0])
    expected = reference.rotate(qkv, heads, norm, tables, targets[1])
    assert_same(actual, expected.contiguous())
    assert_same(targets[0].keys, targets[1].keys)
    assert torch.equal(targets[0].values, targets[1].values)
    assert targets[0].values.count_nonzero() == tokens * kv_heads * dim
