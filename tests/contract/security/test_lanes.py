"""Links between hosts with certificates: who may not open one gets none, and learns why."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from shared.errors import LaneBroken
from shared.lanes.sockets.dial import dial
from shared.lanes.sockets.link import SocketLink
from shared.lanes.sockets.server import SocketServer
from shared.security.credentials import Security
from shared.security.identity import ServiceRole, server_name
from shared.security.refusals import Refusals
from shared.security.sessions import lane_context
from tests.support.certificates import DAYS, SuiteAuthority
from tests.support.lanes import CountedSlots, plain, sealed
from tests.support.waiting import LIMIT_S, until

HOST = "127.0.0.1"
POOL, DECODE, GATEWAY = ServiceRole.CACHEPOOL, ServiceRole.DECODE, ServiceRole.GATEWAY


@asynccontextmanager
async def serving(security: Security) -> AsyncIterator[SocketServer]:
    assert security.guard is not None
    server = SocketServer(CountedSlots(), security.lane_server, check_peer=security.guard.check_lane)
    await server.start(HOST, 0)
    try:
        yield server
    finally:
        await server.close()


async def dialled(server: SocketServer, context: object, dc: str = "west") -> SocketLink:
    return await dial(
        HOST,
        server.offer,
        CountedSlots(),
        context,  # type: ignore[arg-type]
        2,
        timeout_s=LIMIT_S,
        server_name=server_name(POOL, dc),
    )


async def carries(server: SocketServer, link: SocketLink, number: int) -> bool:
    """Send an entry through a link; tell whether it arrived."""
    far = server.link(link.number)
    assert far is not None
    with far.incoming(number) as incoming:
        await link.send(number, [sealed(number, 100_000)])
        async with asyncio.timeout(LIMIT_S):
            received = await anext(incoming)
        is_same = plain(received.frames) == [sealed(number, 100_000)]
        for frame in received.frames:
            server._memory.free(frame.payload)
    return is_same


async def test_an_engine_of_the_datacenter_and_pools_of_all(authority: SuiteAuthority) -> None:
    async with serving(authority.security(POOL, "west")) as server:
        for role, dc in ((DECODE, "west"), (POOL, "east")):
            link = await dialled(server, authority.security(role, dc).lane_client)
            assert await carries(server, link, 7)
            await link.close()


@pytest.mark.parametrize(
    ("role", "dc", "told"),
    [
        (GATEWAY, "west", "a gateway of west may not open a link at the cachepool of west"),
        (DECODE, "east", "that takes one of the same datacenter"),
    ],
)
async def test_another_role_or_datacenter(authority: SuiteAuthority, role: ServiceRole, dc: str, told: str) -> None:
    async with serving(authority.security(POOL, "west")) as server:
        with capture_logs() as logs:
            with pytest.raises(LaneBroken, match="refuses the connection: FORBIDDEN"):
                await dialled(server, authority.security(role, dc).lane_client)
            await until(lambda: server.num_half_open == 0)
        (line,) = [entry for entry in logs if entry["event"] == "connection_refused"]
        assert told in line["reason"]
        assert line["peer"].startswith(f"{HOST}:")


@pytest.mark.parametrize(
    ("wrong", "ours", "theirs"),
    [
        ("expired", "certificate has expired", "expired"),
        ("authority", "certificate verify failed", "LaneBroken|SSL|alert|ALERT"),
        ("plain", "", "ended in its first words|reset"),
    ],
)
async def test_a_wrong_certificate_or_none(
    authority: SuiteAuthority, tmp_path: Path, wrong: str, ours: str, theirs: str
) -> None:
    context, refusals = None, Refusals()
    if wrong != "plain":
        issuer = SuiteAuthority(tmp_path / "other") if wrong == "authority" else authority
        files = issuer.issue(DECODE, "west", days_ago=DAYS + 1 if wrong == "expired" else 0)
        (issuer.folder / "ca.pem").write_bytes(authority.pair.cert)  # it trusts us, we do not trust it
        context = lane_context(files, refusals)
    async with serving(authority.security(POOL, "west")) as server:
        with capture_logs() as logs:
            with pytest.raises(LaneBroken, match=theirs):
                await dialled(server, context)
            await until(lambda: server.num_half_open == 0)
    if ours:
        assert [entry for entry in logs if entry["event"] == "connection_refused" and ours in entry["reason"]], logs
        assert [entry for entry in logs if entry["event"] == "connection_refused_by_peer"], logs
        assert refusals.counts() == {("lane", "peer"): 1}


@pytest.mark.parametrize("wrong", ["role", "dc"])
async def test_a_client_gives_its_token_to_no_other_server(authority: SuiteAuthority, wrong: str) -> None:
    security = authority.security(DECODE if wrong == "role" else POOL, "east" if wrong == "dc" else "west")
    async with serving(security) as server:
        with capture_logs() as logs:
            with pytest.raises(LaneBroken, match=r"cachepool\.west\.prfaas\.internal"):
                await dialled(server, authority.security(POOL, "north").lane_client)
            await until(lambda: server.num_half_open == 0)
    assert {entry["event"] for entry in logs} >= {"connection_refused", "connection_refused_by_peer"}


async def test_new_certificates_are_for_new_links_and_old_links_go_on(authority: SuiteAuthority) -> None:
    pool, decode = authority.security(POOL, "west"), authority.security(DECODE, "west")
    async with serving(pool) as server:
        old = await dialled(server, decode.lane_client)
        fresh = SuiteAuthority(authority.folder.parent / "fresh")
        (authority.folder / "ca.pem").write_bytes(fresh.pair.cert)
        for role in (POOL, DECODE):
            for path in fresh.issue(role, "west").paths[1:]:
                path.rename(authority.folder / path.name)
        new = await dialled(server, decode.lane_client)
        assert await carries(server, old, 1)
        assert await carries(server, new, 2)
        await old.close()
        await new.close()
