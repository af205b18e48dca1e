"""The suite's engines in this process, made of the services' own parts: a model, its threads, and a pool or none."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from services.decode.engine import DecodeEngine
from services.decode.request import Generation
from services.decode.settings import DecodeSettings
from services.prefill.app import build_prefill
from services.prefill.settings import PrefillSettings
from shared.allocator import keep_freed_memory
from shared.config import load
from shared.deadline import Deadline
from shared.engine.costs.prior import prior_of
from shared.engine.costs.steps import StepCosts
from shared.engine.host import EngineHost
from shared.engine.loaded import LoadedModel, load_model
from shared.engine.pool_access import PoolAccess
from shared.engine.settings import EngineSettings
from shared.engine.thread import WorkThread
from shared.engine.transfer import PageTransfer, TransferMetrics
from shared.interpreter import take_turns_often
from shared.kv.codec import Codec
from shared.kv.entries import BlockEntries
from shared.kv.frame import Frame
from shared.kv.layout import KvLayout
from shared.log import configure
from shared.measuring.fitting import OnlineFit
from shared.metrics import Metrics
from shared.model.grammar.grammars import Grammars
from shared.model.grammar.vocabulary import GrammarVocabulary
from shared.pool.client import PoolClient
from shared.pool.lanes.lane import Arrived
from shared.pool.publication import Grant, Publication
from shared.rpc.client import Channels
from shared.rpc.server import GrpcServer
from shared.sampling.constraint import Constraint
from shared.sampling.params import SamplingParams
from shared.service.health import Health
from shared.service.lifecycle import InFlight, background

TIMEOUT_S = 600.0


class _NoPublication(Publication):
    """Is granted nothing, so it sends nothing."""

    def __init__(self) -> None:
        """No call behind it."""

    async def open(self, layout: KvLayout, blocks: Sequence[BlockEntries]) -> Grant:
        return Grant([0] * len(blocks), [layout.all_layers] * len(blocks))

    async def send(self, frames: Sequence[Frame]) -> None:
        raise AssertionError("entries that were not granted")


class NoPool(PoolClient):
    """A pool that has everything and gives nothing: the engine computes as if it were alone."""

    def __init__(self) -> None:
        self.address = "none"

    async def fetch(
        self, layout: KvLayout, blocks: Sequence[BlockEntries], *_how: Any, **_options: Any
    ) -> AsyncGenerator[Arrived, None]:
        yield Arrived([], list(blocks))

    @asynccontextmanager
    async def publish(self, deadline: Deadline) -> AsyncIterator[Publication]:
        yield _NoPublication()


@asynccontextmanager
async def host(
    settings: EngineSettings, pool: PoolClient, costs_of: Callable[[OnlineFit], StepCosts] = StepCosts
) -> AsyncIterator[EngineHost]:
    """What `serve_engine` opens around a model, without status page, bus and announcements.

    What steps take is learnt from the prior on, by what `costs_of` makes.
    """
    configure(settings.service, level="ERROR")
    keep_freed_memory()
    take_turns_often()
    torch_thread = WorkThread("torch", partial(torch.set_num_threads, settings.num_threads))
    copier = WorkThread("copier")
    try:
        async with background() as jobs:
            model, metrics = await torch_thread.run(partial(load_model, settings)), Metrics()
            access = PoolAccess((pool.address,), lambda _nodes, _tenant: pool)
            transfer = PageTransfer(model.kv, copier, TransferMetrics(metrics))
            server = GrpcServer("127.0.0.1", 0, Health("grpc"), InFlight())
            costs = costs_of(OnlineFit(prior_of(model.config, settings)))
            yield EngineHost(model, torch_thread, access, transfer, metrics, server, jobs, costs)
    finally:
        torch_thread.close()
        copier.close()


@dataclass
class Answer:
    """One request to the decode engine, with the moment of each of its tokens (`time.perf_counter`)."""

    started_s: float
    arrived: asyncio.Event = field(default_factory=asyncio.Event)  # set by every token
    token_at_s: list[float] = field(default_factory=list)
    computed_prompt_tokens: int = 0  # by this engine; the rest was in its pages or came from the pool

    @property
    def first_token_s(self) -> float:
        return self.token_at_s[0] - self.started_s


class DecodeNode:
    """A decode engine that is running. `open_decode` makes and ends it."""

    def __init__(self, host: EngineHost, engine: DecodeEngine) -> None:
        self.host = host
        self._engine = engine
        files, vocab_size = host.model.files, host.model.config.vocab_size
        self._grammars = Grammars(partial(GrammarVocabulary.load, files.path, vocab_size))

    @property
    def model(self) -> LoadedModel:
        return self.host.model

    async def generate(
        self,
        token_ids: Sequence[int],
        num_tokens: int,
        num_blocks: int = 0,
        answer: Answer | None = None,
        constraint: Constraint | None = None,
    ) -> Answer:
        """Ask for exactly `num_tokens` greedy tokens, if `constraint` has answers as long; `num_blocks` leading blocks
        come from the pool."""
        sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0, constraint=constraint)
        guide = None if constraint is None else await self._grammars.guide(constraint, ())
        generation = Generation(
            request_id=None,
            token_ids=token_ids,
            sampling=sampling,
            keys=self.model.keys(token_ids, ""),
            root=self.model.root(""),
            num_blocks=num_blocks,
            sources=[],
            wait_s=TIMEOUT_S,
            codec=Codec.RAW,
            deadline=Deadline.after(TIMEOUT_S),
            guide=guide,
        )
        answer = answer or Answer(0.0)
        answer.started_s = time.perf_counter()
        sequence = self._engine.submit(generation)
        try:
            async for event in sequence.events():
                answer.token_at_s += [time.perf_counter()] * len(event.ids)
                answer.computed_prompt_tokens += event.computed_prompt_tokens
                answer.arrived.set()
        finally:
            self._engine.abort(sequence)
        return answer


@asynccontextmanager
async def open_decode(
    pool_address: str | None = None, costs_of: Callable[[OnlineFit], StepCosts] = StepCosts
) -> AsyncIterator[DecodeNode]:
    """A decode engine with the settings of the environment, on the pool at `pool_address` or on none."""
    settings = load(DecodeSettings)
    async with Channels() as channels:
        pool = NoPool() if pool_address is None else PoolClient(channels, pool_address)
        async with host(settings, pool, costs_of) as parts:
            engine = DecodeEngine(
                settings, parts.model, parts.torch_thread, parts.pool, parts.transfer, parts.metrics, parts.costs
            )
            parts.jobs.start(engine.run(), name="decode engine")
            parts.jobs.start(engine.publisher.run(), name="block publisher")
            parts.jobs.start(engine.ready_pages.run(), name="ready pages")
            yield DecodeNode(parts, engine)


@dataclass(frozen=True)
class PrefillNode:
    """A prefill worker that serves on `address`."""

    host: EngineHost
    address: str
    channels: Channels


@asynccontextmanager
async def open_prefill(pool_address: str) -> AsyncIterator[PrefillNode]:
    """A prefill worker with the settings of the environment, behind real gRPC, on the pool at `pool_address`."""
    settings = load(PrefillSettings)
    async with Channels() as channels, host(settings, PoolClient(channels, pool_address)) as parts:
        build_prefill(settings, parts)
        port = await parts.server.start()
        try:
            yield PrefillNode(parts, f"127.0.0.1:{port}", channels)
        finally:
            await parts.server.stop(0)


class LoopLag:
    """How late the event loop wakes a sleeper, in seconds, for as long as the context is open."""

    def __init__(self, interval_s: float = 0.005) -> None:
        self._interval_s = interval_s
        self.seconds: list[float] = []

    async def __aenter__(self) -> "LoopLag":
        self._task = asyncio.create_task(self._watch(), name="loop lag")
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _watch(self) -> None:
        while True:
            due = time.perf_counter() + self._interval_s
            await asyncio.sleep(self._interval_s)
            self.seconds.append(max(0.0, time.perf_counter() - due))

    @property
    def p99_s(self) -> float:
        return percentile(self.seconds, 99)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` of the values do not exceed. Raises `ValueError` for none."""
    if not values:
        raise ValueError("a percentile of nothing")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
