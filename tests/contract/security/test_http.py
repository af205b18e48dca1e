"""HTTP with certificates: health for everybody, metrics for the suite, nothing for whoever shows a wrong one."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from structlog.testing import capture_logs

from shared.metrics import Metrics
from shared.security.credentials import Security
from shared.security.identity import ServiceRole
from shared.service.health import Health
from shared.service.http import StatusServer
from tests.support.certificates import DAYS, SuiteAuthority
from tests.support.waiting import until

HOST = "127.0.0.1"
POOL, OPERATOR = ServiceRole.CACHEPOOL, ServiceRole.OPERATOR


@asynccontextmanager
async def serving(security: Security) -> AsyncIterator[str]:
    metrics = Metrics()
    assert security.collector is not None
    metrics.registry.register(security.collector)
    server = StatusServer(HOST, 0, metrics.registry, Health(), security.http_server, security.guard)
    async with server:
        yield f"https://{HOST}:{server.port}"


async def asked(url: str, context: ssl.SSLContext) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url, ssl=context) as reply:
        return reply.status, await reply.text()


async def test_health_is_for_everybody_and_metrics_are_for_the_suite(authority: SuiteAuthority) -> None:
    async with serving(authority.security(POOL, "west")) as url:
        assert (await asked(f"{url}/livez", authority.trusting()))[0] == 200
        with capture_logs() as logs:
            status, text = await asked(f"{url}/metrics", authority.trusting())
        assert (status, text) == (403, "no metrics without a certificate of this suite: it showed no certificate\n")
        assert [(entry["event"], entry["peer"]) for entry in logs] == [("connection_refused", HOST)]
        status, text = await asked(f"{url}/metrics", authority.trusting(authority.issue(OPERATOR, "west")))
        assert status == 200
        assert 'prfaas:connections_refused_total{by="us",kind="http"} 1.0' in text
        assert "prfaas:certificate_expiry_seconds 7." in text


@pytest.mark.parametrize(("wrong", "told"), [("expired", "certificate has expired"), ("authority", "verify failed")])
async def test_a_wrong_certificate_is_worse_than_none(
    authority: SuiteAuthority, tmp_path: Path, wrong: str, told: str
) -> None:
    other = SuiteAuthority(tmp_path / "other")
    issuer = other if wrong == "authority" else authority
    files = issuer.issue(OPERATOR, "west", days_ago=DAYS + 1 if wrong == "expired" else 0)
    async with serving(authority.security(POOL, "west")) as url:
        with capture_logs() as logs:
            with pytest.raises(aiohttp.ClientError):  # asyncio drops what the session would tell the client
                await asked(f"{url}/livez", authority.trusting(files))
            await until(lambda: bool(logs))
        assert logs[0]["event"] == "connection_refused"
        assert told in logs[0]["reason"]


async def test_plain_text_is_not_answered(authority: SuiteAuthority) -> None:
    async with serving(authority.security(POOL, "west")) as url, aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"{url.replace('https', 'http')}/livez")


async def test_a_new_certificate_is_for_new_connections(authority: SuiteAuthority) -> None:
    async with serving(authority.security(POOL, "west")) as url:
        address = url.removeprefix("https://").split(":")
        reader, old = await asyncio.open_connection(*address, ssl=authority.trusting())
        old_session = old.get_extra_info("ssl_object")
        before = old_session.getpeercert()["serialNumber"]
        authority.issue(POOL, "west")
        _, new = await asyncio.open_connection(*address, ssl=authority.trusting())
        assert new.get_extra_info("ssl_object").getpeercert()["serialNumber"] != before
        new.close()
        old.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        old.close()
