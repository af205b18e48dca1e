"""Two pools on loopback."""

from collections.abc import AsyncIterator

import pytest

from shared.rpc.client import Channels
from tests.support.pools import Running, serving


@pytest.fixture
async def channels() -> AsyncIterator[Channels]:
    async with Channels() as channels:
        yield channels


@pytest.fixture
async def west(channels: Channels) -> AsyncIterator[Running]:
    async with serving(channels) as running:
        yield running


@pytest.fixture
async def east(channels: Channels) -> AsyncIterator[Running]:
    async with serving(channels) as running:
        yield running
