"""Publishing in the background: what is in the pages, no more than waits in bounds, again after a failure."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from services.decode import publisher as publishing
from services.decode.holding import Holding
from services.decode.publisher import BlockPublisher, PublishWork
from services.decode.request import Request
from services.decode.scheduler import Rank
from shared.deadline import Deadline
from shared.engine.urgency import Urgency
from shared.metrics import Metrics
from shared.model.pages.kv import PagedKv
from shared.pool.memory import MemoryPool, MemoryPublication
from tests.support.parts import access_to, generation, transfer_of
from tests.support.tiny import tiny_model
from tests.support.waiting import until

BLOCK, ALL = 64, 0b1111


class CountingPool(MemoryPool):
    """Counts publications that were begun."""

    num_calls = 0

    @asynccontextmanager
    async def publish(self, deadline: Deadline) -> AsyncIterator[MemoryPublication]:
        self.num_calls += 1
        async with super().publish(deadline) as publication:
            yield publication


@dataclass
class Scene:
    pool: CountingPool
    publisher: BlockPublisher
    request: Request
    holding: Holding
    done: list[PublishWork]
    metrics: Metrics
    kv: PagedKv

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
    model, metrics, pool = tiny_model("llama", 8), Metrics(), CountingPool()
    tokens = list(range(1, 5 * BLOCK // 2)) + [9] * BLOCK
    request = Request(generation(model, tokens), Rank(0, 0), Urgency(0, 0), BLOCK)
    reservation = model.kv.reserve([], len(tokens))
    assert reservation is not None
    holding = Holding(reservation, None, [])
    done: list[PublishWork] = []
    with transfer_of(model, metrics) as transfer:
        publisher = BlockPublisher(access_to(pool), transfer, metrics, done.append)
        task = asyncio.create_task(publisher.run())
        yield Scene(pool, publisher, request, holding, done, metrics, model.kv)
        task.cancel()
        await asyncio.wait({task})
    assert pool.idle


async def test_what_is_in_the_pages_is_published(scene: Scene) -> None:
    assert scene.publish(1, (ALL, 0b0100))
    await until(lambda: scene.done)
    assert scene.held() == {0: set(), 1: {0, 1, 2, 3}, 2: {2}}
    assert scene.request.num_pooled == 0  # block 0 is missing: nobody can resume behind it
    assert scene.publish(0, (ALL, ALL))
    await until(lambda: len(scene.done) == 2)
    assert scene.request.num_pooled == 2


async def test_blocks_that_did_not_arrive_may_be_offered_again(scene: Scene) -> None:
    scene.pool.is_away = True
    scene.request.num_offered = 2
    assert scene.publish(1, (ALL,))
    await until(lambda: scene.done)
    assert (scene.request.num_offered, scene.request.num_pooled) == (1, 0)
    scene.request.retired = True
    assert scene.publish(1, (ALL,))
    await until(lambda: len(scene.done) == 2)
    assert scene.metrics.registry.get_sample_value("prfaas:decode_unpublished_blocks_total") == 1


async def test_a_pool_that_is_away_is_left_alone_for_a_while(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(publishing, "time", SimpleNamespace(monotonic=lambda: now[0]))
    scene.pool.is_away = True
    for _ in range(3):
        assert scene.publish(0, (ALL,))
    await until(lambda: len(scene.done) == 3)
    assert scene.pool.num_calls == 1
    scene.pool.is_away = False
    now[0] += publishing.BACK_OFF_S
    assert scene.publish(0, (ALL,))
    await until(lambda: len(scene.done) == 4)
    assert scene.held()[0] == {0, 1, 2, 3}


def shared(scene: Scene, first: int, end: int) -> PublishWork:
    """Return background work: blocks in pages that are held once more."""
    pages = scene.kv.share(scene.holding.reservation, first, end)
    assert pages is not None
    return PublishWork(scene.request, scene.holding, pages, first, (ALL,) * (end - first))


async def test_background_work_holds_a_part_of_the_pages_unless_it_is_alone(scene: Scene) -> None:
    assert publishing.max_held_blocks(scene.kv) == 1
    assert scene.publisher.publish(shared(scene, 0, 2))
    late = shared(scene, 2, 3)
    assert not scene.publisher.publish(late)
    assert scene.publish(2, (ALL,))  # a swap
    scene.kv.release(late.pages)
    await until(lambda: len(scene.done) == 2)


async def test_what_waits_is_dropped_for_room_but_no_swap(scene: Scene) -> None:
    other = Request(scene.request.generation, Rank(0, 1), Urgency(0, 0), BLOCK)
    background = shared(scene, 0, 2)._replace(request=other)
    other.num_offered = 2
    assert scene.publisher.publish(background)
    assert scene.publish(2, (ALL,))
    assert scene.publisher.make_room()
    assert not scene.publisher.make_room()
    assert scene.done == [background]
    assert other.num_offered == 0
    await until(lambda: len(scene.done) == 2)
    assert scene.held() == {0: set(), 1: set(), 2: {0, 1, 2, 3}}


async def test_a_swap_takes_along_what_its_request_had_offered_before(scene: Scene) -> None:
    other = Request(scene.request.generation, Rank(0, 1), Urgency(0, 0), BLOCK)
    stranger = shared(scene, 0, 1)._replace(request=other)
    scene.publisher.publish(stranger)
    scene.publisher._max_held = 9
    earlier = shared(scene, 0, 2)
    scene.publisher.publish(earlier)
    assert scene.publish(2, (ALL,))
    await until(lambda: len(scene.done) == 3)
    assert scene.done[0] is earlier
    assert scene.done[2] is stranger
    assert scene.request.num_pooled == 3


async def test_background_work_rests_while_the_engine_has_steps_to_run(scene: Scene) -> None:
    rested: list[float] = []
    scene.publisher._duty.rest = _noting(scene.publisher._duty.rest, rested)  # type: ignore[method-assign, assignment]
    scene.publisher.set_busy(True)
    scene.publisher.publish(shared(scene, 0, 1))
    await until(lambda: scene.done)
    assert len(rested) == 4  # a message for each layer
    assert scene.publish(1, (ALL,))
    await until(lambda: len(scene.done) == 2)
    assert len(rested) == 4


def _noting(
    rest: Callable[[float], Coroutine[None, None, None]], rested: list[float]
) -> Callable[[float], Coroutine[None, None, None]]:
    async def noting(worked_s: float) -> None:
        rested.append(worked_s)
        await rest(worked_s)

    return noting


async def test_the_queue_is_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "MAX_QUEUED_BLOCKS", 2)
    assert scene.publish(0, (ALL, ALL))
    assert not scene.publish(2, (ALL,))
    await until(lambda: scene.done)
    assert scene.publish(2, (ALL,))
