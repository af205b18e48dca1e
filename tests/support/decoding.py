"""A decode engine in one process without a pool, and requests to it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from services.decode.engine import DecodeEngine
from services.decode.request import Request
from services.decode.settings import DecodeSettings
from shared.deadline import Deadline
from shared.engine.loaded import LoadedModel
from shared.engine.thread import WorkThread
from shared.metrics import Metrics
from shared.pool.memory import MemoryPool
from shared.sampling.params import SamplingParams
from tests.support.parts import access_to, generation, step_costs, transfer_of


@dataclass
class DecodeBench:
    """An engine that runs."""

    engine: DecodeEngine
    model: LoadedModel
    metrics: Metrics
    tasks: "list[asyncio.Task[None]]"

    def metric(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(f"prfaas:{name}") or 0.0

    def submit(
        self, token_ids: list[int], max_tokens: int = 8, deadline_s: float = 60, priority: int = 0, **sampling: Any
    ) -> Request:
        params = SamplingParams(max_tokens=max_tokens, **{"temperature": 0.0, **sampling})
        deadline = Deadline.after(deadline_s)
        asked = generation(self.model, token_ids, sampling=params, deadline=deadline, priority=priority)
        return self.engine.submit(asked)

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)


@asynccontextmanager
async def decode_bench(model: LoadedModel, **settings: Any) -> AsyncIterator[DecodeBench]:
    """Run an engine with chunks of 128 tokens; when it has ended, no page is held."""
    metrics, thread, nobody = Metrics(), WorkThread("torch"), MemoryPool()
    nobody.is_away = True
    with transfer_of(model, metrics) as transfer:
        chosen = DecodeSettings(chunk_tokens=128, **settings)
        engine = DecodeEngine(chosen, model, thread, access_to(nobody), transfer, metrics, step_costs(5))
        tasks = [asyncio.create_task(engine.run()), asyncio.create_task(engine.publisher.run())]
        made = DecodeBench(engine, model, metrics, tasks)
        try:
            yield made
        finally:
            await made.stop()
            thread.close()
    assert model.kv.held == 0
    model.kv.check()


async def ids_of(request: Request) -> list[int]:
    return [token async for event in request.events() for token in event.ids]


def words(num_tokens: int, seed: int = 0) -> list[int]:
    return [(7 * i + 31 * seed) % 198 + 1 for i in range(num_tokens)]
