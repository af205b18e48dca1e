"""Fixtures of the model tests. One PyTorch thread: tiny tensors gain nothing from more."""

from dataclasses import replace

import pytest
import torch

from tests.support import checkpoints


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=sorted(checkpoints.CONFIGS))
def any_checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> checkpoints.Tiny:
    return checkpoints.load(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session", params=["kernels", "torch"])
def any_model(request: pytest.FixtureRequest, any_checkpoint: checkpoints.Tiny) -> checkpoints.Tiny:
    """Every family, once with the C kernels and once without."""
    if request.param == "kernels":
        return any_checkpoint
    return replace(any_checkpoint, model=any_checkpoint.without_kernels())


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> checkpoints.Tiny:
    return checkpoints.load("gemma3", tmp_path_factory.mktemp("gemma"))
