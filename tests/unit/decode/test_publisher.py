"""Publishing in the background: what is in the pages, no more than waits in bounds, again after a failure."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from services.decode import publisher as publishing
from services.decode.holding import Holding
from services.decode.publisher import BlockPublisher, PublishWork
from services.decode.request import Generation, Request
from services.decode.scheduler import Rank
from shared.deadline import Deadline
from shared.engine.pool_access import PoolAccess
from shared.engine.thread import WorkThread
from shared.engine.transfer import FetchMetrics, PageTransfer
from shared.errors import WorkerLost
from shared.kv.codec import Codec
from shared.kv.entries import BlockEntries
from shared.kv.frame import Frame
from shared.kv.layout import KvLayout
from shared.metrics import Metrics
from shared.pool.client import Grant
from shared.sampling.params import SamplingParams
from tests.support.tiny import tiny_model
from tests.support.waiting import until

BLOCK, ALL = 64, 0b1111


@dataclass
class FakePool:
    """Grants everything and keeps what it gets; or cannot be reached."""

    away: bool = False
    num_calls: int = 0
    frames: dict[tuple[bytes, int], Frame] = field(default_factory=dict)

    @asynccontextmanager
    async def publish(self, _deadline: Deadline) -> AsyncIterator["FakePool"]:
        self.num_calls += 1
        if self.away:
            raise WorkerLost("nobody there")
        yield self

    async def open(self, _layout: KvLayout, blocks: Sequence[BlockEntries]) -> Grant:
        return Grant([block.layers for block in blocks], [0] * len(blocks))

    async def send(self, frames: Sequence[Frame]) -> None:
        self.frames.update(((frame.key, frame.layer), frame) for frame in frames)


@dataclass
class Scene:
    pool: FakePool
    publisher: BlockPublisher
    request: Request
    holding: Holding
    done: list[PublishWork]
    metrics: Metrics

    def publish(self, first: int, layers: tuple[int, ...]) -> bool:
        return self.publisher.publish(PublishWork(self.request, self.holding, self.holding.reservation, first, layers))

    def held(self) -> dict[int, set[int]]:
        """Return the layers of each block that are in the pool."""
        return {
            block: {layer for key, layer in self.pool.frames if key == self.request.keys[block]}
            for block in range(len(self.request.keys))
        }


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    model, metrics, copier, pool = tiny_model("llama", 8), Metrics(), WorkThread("copier"), FakePool()
    tokens = list(range(1, 5 * BLOCK // 2)) + [9] * BLOCK
    generation = Generation(
        request_id=None,
        token_ids=tokens,
        sampling=SamplingParams(max_tokens=1),
        keys=model.keys(tokens, ""),
        root=model.root(""),
        num_blocks=0,
        sources=(),
        wait_s=0.0,
        codec=Codec.RAW,
        deadline=Deadline.after(20),
    )
    reservation = model.kv.reserve([], len(tokens))
    assert reservation is not None
    holding = Holding(reservation, None, [])
    done: list[PublishWork] = []
    fake: Any = pool
    access = PoolAccess(("fake",), lambda _nodes, _tenant: fake)
    publisher = BlockPublisher(access, PageTransfer(model.kv, copier, FetchMetrics(metrics)), metrics, done.append)
    task = asyncio.create_task(publisher.run())
    yield Scene(pool, publisher, Request(generation, Rank(0, 0)), holding, done, metrics)
    task.cancel()
    await asyncio.wait({task})
    copier.close()


async def test_what_is_in_the_pages_is_published(scene: Scene) -> None:
    assert scene.publish(1, (ALL, 0b0100))
    await until(lambda: scene.done)
    assert scene.held() == {0: set(), 1: {0, 1, 2, 3}, 2: {2}}
    assert scene.request.num_pooled == 0  # block 0 is missing: nobody can resume behind it
    assert scene.publish(0, (ALL, ALL))
    await until(lambda: len(scene.done) == 2)
    assert scene.request.num_pooled == 2


async def test_blocks_that_did_not_arrive_may_be_offered_again(scene: Scene) -> None:
    scene.pool.away = True
    scene.request.num_offered = 2
    assert scene.publish(1, (ALL,))
    await until(lambda: scene.done)
    assert (scene.request.num_offered, scene.request.num_pooled) == (1, 0)
    assert scene.metrics.registry.get_sample_value("prfaas:decode_unpublished_blocks_total") == 1


async def test_a_pool_that_is_away_is_left_alone_for_a_while(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(publishing, "time", SimpleNamespace(monotonic=lambda: now[0]))
    scene.pool.away = True
    for _ in range(3):
        assert scene.publish(0, (ALL,))
    await until(lambda: len(scene.done) == 3)
    assert scene.pool.num_calls == 1
    scene.pool.away = False
    now[0] += publishing.BACK_OFF_S
    assert scene.publish(0, (ALL,))
    await until(lambda: len(scene.done) == 4)
    assert scene.held()[0] == {0, 1, 2, 3}


async def test_the_queue_is_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "MAX_QUEUED_BLOCKS", 2)
    assert scene.publish(0, (ALL, ALL))
    assert not scene.publish(2, (ALL,))
    await until(lambda: scene.done)
    assert scene.publish(2, (ALL,))
