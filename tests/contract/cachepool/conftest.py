"""Two pools on loopback, and each lane between them and their clients."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import get_args

import pytest

from shared.lanes.settings import LaneName
from shared.rpc.client import Channels
from tests.support.pools import Running, lanes_in_use, serving


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test over all lanes, unless its module says that it is about one, `LANES`, or the test itself does."""
    if any(mark.args[0] == "lane" for mark in metafunc.definition.iter_markers("parametrize")):
        return
    metafunc.parametrize("lane", getattr(metafunc.module, "LANES", get_args(LaneName)), indirect=True)


@pytest.fixture(autouse=True)
def lane(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LaneName:
    """The lane of all pools and clients of a test."""
    name: LaneName = request.param
    monkeypatch.setattr(lanes_in_use, "allowed", (name,) if name == "grpc" else (name, "grpc"))
    monkeypatch.setattr(lanes_in_use, "folder", tmp_path / "lanes")
    return name


@pytest.fixture
async def channels() -> AsyncIterator[Channels]:
    async with Channels(silence_s=9.0) as channels:  # as of a pool
        yield channels


@pytest.fixture
async def west(channels: Channels) -> AsyncIterator[Running]:
    async with serving(channels) as running:
        yield running


@pytest.fixture
async def east(channels: Channels) -> AsyncIterator[Running]:
    async with serving(channels) as running:
        yield running
