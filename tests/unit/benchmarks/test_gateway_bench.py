"""The gateway's benchmark in miniature: each work is answered, and processor time is counted."""

from collections.abc import AsyncIterator

import pytest

from benchmarks.gateway.processes import ChildProcess, child, file_of
from benchmarks.gateway.work import Client, GatewayWork, works
from benchmarks.harness import ROOT
from shared.model.files.catalog import DEFAULT_MODEL
from shared.native import default_cache_dir


@pytest.fixture
async def gateway() -> AsyncIterator[ChildProcess]:
    async with (
        child(ROOT, file_of("workers.py")) as workers,
        child(ROOT, file_of("served.py"), *[workers.said] * 2, DEFAULT_MODEL, str(default_cache_dir())) as served,
    ):
        yield served


@pytest.mark.slow
async def test_every_work_is_answered(gateway: ChildProcess) -> None:
    client = Client(gateway)
    spent = {work.name: await client.spent_s(work) for work in works(2, 1, 2, num_streamed=1)}
    assert len(spent) == 12
    assert all(value > 0 for value in spent.values())
    refused = GatewayWork("refused", "completions", lambda _number: {"prompt": []}, 1)
    with pytest.raises(RuntimeError, match="400"):
        await client.spent_s(refused)
