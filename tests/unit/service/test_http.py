"""The status port."""

import json

import aiohttp
import pytest

from shared.errors import SettingsError
from shared.metrics import Metrics
from shared.service.health import Health
from shared.service.http import StatusServer


async def test_status_port() -> None:
    metrics, health = Metrics(), Health("grpc")
    metrics.counter("requests", "Requests.").inc()
    async with (
        StatusServer("127.0.0.1", 0, metrics.registry, health) as server,
        aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session,
    ):
        assert server.port > 0
        async with session.get("/metrics") as reply:
            assert reply.status == 200
            assert reply.headers["Content-Type"].startswith("text/plain")
            assert "prfaas:requests_total 1.0" in await reply.text()
        async with session.get("/livez") as reply:
            assert reply.status == 200
        async with session.get("/readyz") as reply:
            assert reply.status == 503
            body = json.loads(await reply.text())
        assert body["conditions"]["grpc"] == {"ok": False, "required": True, "detail": "starting"}
        health.set("grpc", True)
        health.set("kafka", False, "no broker")
        async with session.get("/readyz") as reply:
            assert reply.status == 200
            assert json.loads(await reply.text())["conditions"]["kafka"]["detail"] == "no broker"


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",  # of Prometheus 2
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=1.0.0;q=0.4",  # 3
        "*/*",
    ],
)
async def test_names_keep_their_colon_whoever_asks(accept: str) -> None:
    metrics = Metrics()
    metrics.counter("requests", "Requests.", ["dc"]).labels("east").inc()
    async with (
        StatusServer("127.0.0.1", 0, metrics.registry, Health()) as server,
        aiohttp.ClientSession(f"http://127.0.0.1:{server.port}", headers={"Accept": accept}) as session,
        session.get("/metrics") as reply,
    ):
        assert 'prfaas:requests_total{dc="east"} 1.0\n' in await reply.text()


async def test_a_taken_port_is_a_settings_error() -> None:
    async with StatusServer("127.0.0.1", 0, Metrics().registry, Health()) as first:
        with pytest.raises(SettingsError, match=f"PRFAAS_HTTP_PORT: 127.0.0.1:{first.port} is already in use"):
            async with StatusServer("127.0.0.1", first.port, Metrics().registry, Health()):
                pass
