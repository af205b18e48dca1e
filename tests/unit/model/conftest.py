"""Fixtures of the model tests. One PyTorch thread: tiny tensors gain nothing from more."""

from dataclasses import replace

import pytest
import torch

from tests.unit.model import tiny


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=sorted(tiny.CONFIGS))
def any_checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tiny.Tiny:
    return tiny.load(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session", params=["kernels", "torch"])
def any_model(request: pytest.FixtureRequest, any_checkpoint: tiny.Tiny) -> tiny.Tiny:
    """Every family, once with the C kernels and once without."""
    if request.param == "kernels":
        return any_checkpoint
    return replace(any_checkpoint, model=any_checkpoint.without_kernels())


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> tiny.Tiny:
    return tiny.load("gemma3", tmp_path_factory.mktemp("gemma"))
