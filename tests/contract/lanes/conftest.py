"""A pool on loopback, and each lane to it for tests that ask for one."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import get_args

import pytest

from shared.lanes.settings import LaneName
from shared.rpc.client import Channels
from tests.support.pools import Running, lanes_in_use, serving, soon


@pytest.fixture(params=get_args(LaneName))
def lane(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LaneName:
    """The lane that pools offer and clients use; a test may be about some of them only."""
    name: LaneName = request.param
    monkeypatch.setattr(lanes_in_use, "allowed", (name,) if name == "grpc" else (name, "grpc"))
    monkeypatch.setattr(lanes_in_use, "folder", tmp_path / "lanes")
    return name


@pytest.fixture
async def west(lane: LaneName, channels: Channels) -> AsyncIterator[Running]:
    """A pool with the lane that its own client has opened already."""
    async with serving(channels, pool_bytes=64 << 20, max_lease_s=2.0) as running:
        async with running.client.publish(soon()):
            pass
        yield running


@pytest.fixture
async def channels() -> AsyncIterator[Channels]:
    async with Channels() as channels:
        yield channels
