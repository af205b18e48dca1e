"""Two datacenters in one process: pools, prefill and decode behind real gRPC on loopback, tiny models, no Kafka."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from services.cachepool.app import PoolParts, build_pool
from services.cachepool.serving.ends import lane_ends
from services.cachepool.settings import PoolSettings
from services.decode.app import build_decode
from services.decode.settings import DecodeSettings
from services.prefill.app import build_prefill
from services.prefill.settings import PrefillSettings
from shared.bus.events import PlacementEvent
from shared.deadline import Deadline
from shared.engine.costs.prior import prior_of
from shared.engine.costs.steps import StepCosts
from shared.engine.host import EngineHost
from shared.engine.loaded import LoadedModel
from shared.engine.pool_access import PoolAccess
from shared.engine.settings import EngineSettings
from shared.engine.thread import WorkThread
from shared.engine.transfer import PageTransfer, TransferMetrics
from shared.ids import Datacenter, new_epoch
from shared.kv.codec import Codec, Fidelity
from shared.kv.entries import BlockEntries, Source
from shared.kv.hashing import num_prefix_blocks
from shared.measuring.fitting import OnlineFit
from shared.metrics import Metrics
from shared.pool.calls import add_pool_servicer
from shared.pool.lanes.chosen import engine_lanes
from shared.pool.nodes import pool_at
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import DecodeStub, PrefillStub
from shared.rpc.client import Channels, rpc_errors
from shared.rpc.convert import sources_to_messages
from shared.rpc.sampling import logprobs_from_message
from shared.rpc.server import GrpcServer
from shared.rpc.timings import decode_timings_from_message
from shared.sampling.logprobs import TokenLogprobs
from shared.security.credentials import NO_SECURITY
from shared.service.health import Health
from shared.service.lifecycle import InFlight, background
from shared.timings import DecodeTimings
from tests.support.tiny import tiny_model
from tests.support.waiting import LIMIT_S

CALL_S = 120


@dataclass
class Result:
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: int = 0
    decode_computed: int = 0
    prefill_computed: int = 0
    num_rescues: int = 0  # messages that say that blocks were late
    timings: list[DecodeTimings] = field(default_factory=list)  # as often as they were said

    def cached(self, num_prompt_tokens: int) -> int:
        return num_prompt_tokens - self.decode_computed - self.prefill_computed


@dataclass
class Node:
    """A pool or an engine that serves on `address`."""

    address: str
    metrics: Metrics
    inflight: InFlight
    server: GrpcServer
    pool: PoolParts | None = None
    model: LoadedModel | None = None

    def metric(self, name: str, **labels: str) -> float:
        value = self.metrics.registry.get_sample_value(f"prfaas:{name}", labels)
        return 0.0 if value is None else value


@dataclass(frozen=True)
class Pools:
    """What the pools are like, and who hears what they hold: `cachepool-east` and `cachepool-west`, one node each."""

    settings: Mapping[str, Any] = field(default_factory=dict)  # of `PoolSettings`
    publish: Callable[[PlacementEvent], None] | None = None


class TwoDatacenters:
    """prefill-east writes to the east's pool; decode-west reads from the west's, which pulls from the east's."""

    prefill: Node
    decode: Node

    def __init__(self, name: str, channels: Channels, stack: AsyncExitStack, pools: "Pools") -> None:
        self.name = name
        self._pools = pools
        self.channels = channels
        self.nodes: dict[str, list[Node]] = {"east": [], "west": []}  # of each pool, as plans name them
        self._stack = stack

    @property
    def pool_east(self) -> Node:
        return self.nodes["east"][0]

    @property
    def pool_west(self) -> Node:
        return self.nodes["west"][0]

    def addresses(self, dc: str) -> tuple[str, ...]:
        return tuple(node.address for node in self.nodes[dc])

    async def join(self, dc: str) -> Node:
        """Start one more pool node, which plans name from now on."""
        node = await self._stack.enter_async_context(_pool(dc, self._pools))
        self.nodes[dc].append(node)
        return node

    async def kill(self, dc: str, node: Node) -> None:
        """Stop a pool node in the middle of whatever it does; plans go on to name it until `forget`."""
        assert node in self.nodes[dc]
        await node.server.stop(0)

    def forget(self, dc: str, node: Node) -> None:
        self.nodes[dc].remove(node)

    async def prefill_only(
        self,
        token_ids: list[int],
        codec: Codec = Codec.RAW,
        priority: int = 0,
        fidelity: Fidelity = Fidelity.LOSSLESS,
    ) -> int:
        """Prefill in the east; return how many tokens it computed."""
        model = self.prefill.model
        assert model is not None
        request = pb.PrefillRequest(
            token_ids=token_ids,
            num_blocks=num_prefix_blocks(len(token_ids), model.layout.block_tokens),
            fingerprint=model.files.fingerprint,
            layout_hash=model.layout.hash,
            codec=int(codec),  # type: ignore[arg-type]
            priority=priority,
            pool_nodes=self.addresses("east"),
            fidelity=int(fidelity),  # type: ignore[arg-type]
        )
        computed = 0
        call = PrefillStub(self.channels.get(self.prefill.address)).Prefill(request, timeout=CALL_S)
        with rpc_errors("prefill"), _cancelled_at_last(call):
            async for progress in call:
                computed = progress.computed_tokens
        return computed

    async def pull_west(self, token_ids: list[int]) -> None:
        """Bring a prompt's blocks from the east's pool to the west's, as a reader in the west would."""
        model = self.decode.model
        assert model is not None
        keys = model.keys(token_ids, "")
        wanted = [BlockEntries(key, model.layout.all_layers) for key in keys]
        sources = [Source(0, len(keys), Datacenter("east"), self.addresses("east"))]
        reader = pool_at(self.channels, self.addresses("west"))
        async for arrived in reader.fetch(model.layout, wanted, sources, 0.0, Deadline.after(LIMIT_S)):
            assert not arrived.missing

    async def generate(
        self,
        token_ids: list[int],
        max_tokens: int = 8,
        *,
        prefill: bool = True,
        num_blocks: int | None = None,
        codec: Codec = Codec.RAW,
        fidelity: Fidelity = Fidelity.LOSSLESS,
        wait_ms: int = 60_000,
        patience_ms: int = 0,
        prefill_failed_after_s: float | None = None,
        num_generated: int = 0,
        priority: int = 0,
        salt: str = "",
        result: Result | None = None,
        **sampling: Any,
    ) -> Result:
        """Do what the gateway does: open both calls at once, pull from the east what the west lacks.

        Prefill ends as soon as decode says that its blocks are late.
        Fill `result`, if there is one: then a caller who cancels this has what came until then.
        """
        model = self.decode.model
        assert model is not None
        result = Result() if result is None else result
        if num_blocks is None:
            num_blocks = num_prefix_blocks(len(token_ids), model.layout.block_tokens)
        everything = Source(0, num_blocks, Datacenter("east"), self.addresses("east"))
        start = pb.GenerateRequest(
            token_ids=token_ids,
            sampling=pb.Sampling(max_tokens=max_tokens, top_p=1, **sampling),
            fingerprint=model.files.fingerprint,
            layout_hash=model.layout.hash,
            num_blocks=num_blocks,
            salt=salt,
            sources=sources_to_messages([everything]) if num_blocks else [],
            wait_ms=wait_ms,
            num_generated=num_generated,
            priority=priority,
            pool_nodes=self.addresses("west"),
            codec=int(codec),  # type: ignore[arg-type]
            fidelity=int(fidelity),  # type: ignore[arg-type]
            patience_ms=patience_ms,
        )

        async def controls() -> AsyncIterator[pb.Control]:
            yield pb.Control(start=start)
            if prefill_failed_after_s is not None:
                await asyncio.sleep(prefill_failed_after_s)
                yield pb.Control(update=pb.PlanUpdate(prefill_failed=True))

        async with asyncio.TaskGroup() as tasks:
            prefilling = None
            if prefill and num_blocks:
                prefilling = tasks.create_task(self.prefill_only(token_ids, codec, fidelity=fidelity))
            call = DecodeStub(self.channels.get(self.decode.address)).Generate(controls(), timeout=CALL_S)
            with rpc_errors("decode"), _cancelled_at_last(call):
                async for message in call:
                    result.ids += message.ids
                    result.logprobs += logprobs_from_message(message)
                    result.finish_reason = message.finish_reason
                    result.decode_computed += message.computed_prompt_tokens
                    if (timings := decode_timings_from_message(message)) is not None:
                        result.timings.append(timings)
                    if message.rescued:
                        result.num_rescues += 1
                        if prefilling is not None:
                            prefilling.cancel()
        if prefilling is not None and not prefilling.cancelled():
            result.prefill_computed = prefilling.result()
        return result

    async def assert_idle(self, within_s: float = LIMIT_S) -> None:
        """Check that soon no page, lease or call is held anywhere, and that all books balance."""
        nodes = (*self.nodes["east"], *self.nodes["west"], self.prefill, self.decode)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while held := {n.address: h for n in nodes if (h := _held(n))}:
            assert loop.time() < deadline, f"still held: {held}"
            await asyncio.sleep(0.01)
        for node in (self.prefill, self.decode):
            assert node.model is not None
            node.model.kv.check()


@contextmanager
def _cancelled_at_last(call: grpc.aio.Call) -> Iterator[None]:
    """A reader that is cancelled just when a call begins leaves it open: gRPC cancels it at any other moment only."""
    try:
        yield
    finally:
        call.cancel()


def _held(node: Node) -> int:
    held = node.inflight.count
    if node.model is not None:
        held += node.model.kv.held
    if node.pool is not None:
        stats = node.pool.store.stats
        held += stats.num_leases + stats.num_readers + stats.num_writers
    return held


@asynccontextmanager
async def two_datacenters(
    name: str,
    *,
    num_pages: int = 128,
    chunk_tokens: int = 128,
    max_batch: int = 16,
    num_nodes: int = 1,
    pools: Pools = Pools(),
    directory: Path | None = None,
) -> AsyncIterator[TwoDatacenters]:
    """`directory` has the model's tokenizer, which only constraints need."""
    async with AsyncExitStack() as stack:
        dcs = TwoDatacenters(name, await stack.enter_async_context(Channels()), stack, pools)
        for dc in ("east", "west"):
            for _ in range(num_nodes):
                await dcs.join(dc)
        prefill = PrefillSettings(dc="east", pool=dcs.pool_east.address, chunk_tokens=chunk_tokens)
        decode = DecodeSettings(
            dc="west", pool=dcs.pool_west.address, chunk_tokens=chunk_tokens, max_batch=max_batch, max_waiting=64
        )
        dcs.prefill = await stack.enter_async_context(_engine(name, num_pages, prefill, directory))
        dcs.decode = await stack.enter_async_context(_engine(name, num_pages, decode, directory))
        yield dcs


@asynccontextmanager
async def _pool(dc: str, pools: Pools) -> AsyncIterator[Node]:
    async with Channels() as channels, background() as jobs:
        metrics, inflight = Metrics(), InFlight()
        settings = PoolSettings(dc=dc, **pools.settings)
        server = GrpcServer("127.0.0.1", 0, Health("grpc"), inflight)
        address = f"127.0.0.1:{server.bind()}"
        async with lane_ends(settings, NO_SECURITY) as ends:
            publish = pools.publish or (lambda _event: None)
            pool = build_pool(settings, new_epoch(), channels, metrics, publish, own_address=address, ends=ends)
            add_pool_servicer(pool.servicer, server.grpc)
            await server.start()
            if pools.publish is not None:
                jobs.start(pool.feed.run(), name="placement")
            try:
                yield Node(address, metrics, inflight, server, pool=pool)
            finally:
                await server.stop(0)
                await pool.pulls.close()
                await pool.lanes.close()


@asynccontextmanager
async def _engine(name: str, num_pages: int, settings: EngineSettings, directory: Path | None) -> AsyncIterator[Node]:
    async with Channels() as channels, background() as jobs:
        metrics, inflight = Metrics(), InFlight()
        model = tiny_model(name, num_pages, directory=directory)
        torch_thread, copier = WorkThread("torch"), WorkThread("copier")
        lanes = engine_lanes(settings, channels)
        pool = PoolAccess((settings.pool,), partial(pool_at, channels, lanes=lanes))
        transfer = PageTransfer(model.kv, copier, TransferMetrics(metrics))
        server = GrpcServer("127.0.0.1", 0, Health("grpc"), inflight)
        costs = StepCosts(OnlineFit(prior_of(model.config, settings)))
        host = EngineHost(model, torch_thread, pool, transfer, metrics, server, jobs, costs)
        if isinstance(settings, PrefillSettings):
            build_prefill(settings, host)
        elif isinstance(settings, DecodeSettings):
            build_decode(settings, host)
        else:
            pytest.fail(f"no engine for {type(settings).__name__}")
        try:
            yield Node(f"127.0.0.1:{await server.start()}", metrics, inflight, server, model=model)
        finally:
            await server.stop(0)
            await lanes.close()
            torch_thread.close()
            copier.close()
