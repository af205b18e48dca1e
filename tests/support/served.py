"""A gateway's HTTP before two datacenters of real engines and pools, all in one process, with a tiny model."""

import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from services.gateway.app import GatewayParts, make_http_app, make_parts
from services.gateway.model import ServedModel
from services.gateway.settings import GatewaySettings
from shared.bus.events import MembershipEvent, PlacementEvent
from shared.ids import Datacenter, Epoch, LayoutHash, ModelFingerprint, WorkerId
from shared.metrics import Metrics
from shared.rpc.client import Channels
from shared.service.health import Health
from shared.service.http import HttpServer
from shared.service.lifecycle import InFlight
from tests.support import structured
from tests.support.engines import Pools, TwoDatacenters, two_datacenters
from tests.support.gateway import tiny_tokenizer
from tests.support.placement import take_snapshot
from tests.support.structured import save_tokenizer
from tests.support.tiny import MAX_MODEL_LEN, VOCAB_SIZE, tiny_model
from tests.support.waiting import until


@dataclass
class ServedTiny:
    client: aiohttp.ClientSession
    dcs: TwoDatacenters
    parts: GatewayParts
    metrics: Metrics  # of the gateway

    async def complete(self, **body: Any) -> dict[str, Any]:
        """Ask for a completion and return the answer."""
        async with self.client.post("/v1/completions", json=body) as response:
            answer: dict[str, Any] = await response.json()
            assert response.status == 200, answer
        return answer

    def metric(self, name: str, **labels: str) -> float:
        """Return a metric of the gateway."""
        return self.metrics.registry.get_sample_value(f"prfaas:{name}", {"model_name": "tiny", **labels}) or 0.0


@asynccontextmanager
async def served_tiny(
    directory: Path, *, model: str = "llama", num_pages: int = 128, pool_settings: Mapping[str, Any] = {}
) -> AsyncIterator[ServedTiny]:
    """Prefill in the east, decode and the gateway in the west. Every prompt of a block and more is handed over.

    `model`: of `tiny.py`; `bytes` spells every text.
    """
    layout = tiny_model(model, num_pages=1).layout
    spells_all = model == "bytes"
    tokenizer = save_tokenizer(directory) if spells_all else tiny_tokenizer(directory)
    vocab_size = structured.VOCAB_SIZE if spells_all else VOCAB_SIZE
    served = ServedModel("tiny", tokenizer, layout, ModelFingerprint(model), vocab_size, MAX_MODEL_LEN)
    async with AsyncExitStack() as stack:
        metrics, inflight = Metrics(), InFlight()
        parts = make_parts(served, await stack.enter_async_context(Channels()), metrics)

        def hear(event: PlacementEvent) -> None:
            parts.index.apply(event, time.monotonic())
            if event.cleared:  # a pool that has just begun: its snapshot is empty
                take_snapshot(parts.index, event.holder, event.epoch, event.sequence, [])

        pools = Pools(pool_settings, hear)
        dcs = await stack.enter_async_context(
            two_datacenters(model, num_pages=num_pages, pools=pools, directory=directory)
        )
        for role, dc, address in (
            ("cachepool", "east", dcs.pool_east.address),
            ("cachepool", "west", dcs.pool_west.address),
            ("prefill", "east", dcs.prefill.address),
            ("decode", "west", dcs.decode.address),
        ):
            event = MembershipEvent(
                worker=WorkerId(f"{role}-{dc}"),
                role=role,  # type: ignore[arg-type]
                dc=Datacenter(dc),
                address=address,
                fingerprint=served.fingerprint,
                layout_hash=LayoutHash(layout.hash),
                model_name="tiny",
                epoch=Epoch(1),
                pool_address=dcs.addresses(dc)[0],
            )
            parts.registry.apply_membership(event, time.monotonic())
        await until(lambda: len(parts.index.num_blocks()) == 2 and not parts.index.has_stale)
        settings = GatewaySettings(
            dc="west",
            http_port=0,
            routing_policy="threshold",
            offload_threshold_tokens=32,
            decode_threshold_tokens=0,
        )
        executor = stack.enter_context(ThreadPoolExecutor(1))
        app = make_http_app(parts, settings, Health(), inflight, executor, metrics)
        server = await stack.enter_async_context(HttpServer(app, "127.0.0.1", 0))
        client = await stack.enter_async_context(aiohttp.ClientSession(f"http://127.0.0.1:{server.port}"))
        yield ServedTiny(client, dcs, parts, metrics)
