"""gRPC with certificates: who may not call is refused, both sides say why, and rotation disturbs nobody."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from shared.errors import PeerRefused, WorkerLost
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import CachePoolStub, DecodeStub
from shared.rpc.client import Channels, rpc_errors
from shared.rpc.server import GrpcServer
from shared.security.credentials import Security
from shared.security.identity import ServiceRole
from shared.security.refusals import Refusals
from shared.service.health import Health
from shared.service.lifecycle import InFlight
from tests.support.certificates import DAYS, SuiteAuthority
from tests.support.waiting import LIMIT_S, until

HOST = "127.0.0.1"
SERVICE = "prfaas.v1.CachePool"
POOL, PREFILL, GATEWAY = ServiceRole.CACHEPOOL, ServiceRole.PREFILL, ServiceRole.GATEWAY


class Pool(NamedTuple):
    """A server with two methods of a pool: one that gateways may call, and one that engines of its DC may."""

    address: str
    counts: Any  # of its refusals

    async def unpin(self, channels: Channels) -> bool:
        return bool((await self._call(channels, "Unpin", pb.UnpinRequest(pin="x"))).found)

    async def lanes(self, channels: Channels) -> None:
        await self._call(channels, "Lanes", pb.LanesRequest())

    async def _call(self, channels: Channels, method: str, request: Any) -> Any:
        with rpc_errors(self.address):
            return await getattr(CachePoolStub(channels.get(self.address)), method)(request, timeout=LIMIT_S)


@asynccontextmanager
async def serving(security: Security, credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[Pool]:
    async def unpin(request: pb.UnpinRequest, context: Any) -> pb.UnpinReply:
        return pb.UnpinReply(found=True)

    async def lanes(request: pb.LanesRequest, context: Any) -> pb.LanesReply:
        return pb.LanesReply()

    async def snapshot(request: pb.SnapshotRequest, context: Any) -> AsyncIterator[pb.SnapshotReply]:
        for sequence in range(1000):
            yield pb.SnapshotReply(sequence=sequence)
            await asyncio.sleep(0.02)

    handlers: dict[str, Any] = {
        "Unpin": grpc.unary_unary_rpc_method_handler(
            unpin, pb.UnpinRequest.FromString, pb.UnpinReply.SerializeToString
        ),
        "Lanes": grpc.unary_unary_rpc_method_handler(
            lanes, pb.LanesRequest.FromString, pb.LanesReply.SerializeToString
        ),
        "Snapshot": grpc.unary_stream_rpc_method_handler(
            snapshot, pb.SnapshotRequest.FromString, pb.SnapshotReply.SerializeToString
        ),
    }
    health = Health("grpc")
    server = GrpcServer(HOST, 0, health, InFlight(), credentials or security.grpc_server, guard=security.guard)
    server.grpc.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    address = f"{HOST}:{await server.start()}"
    health.set("grpc", True)
    refusals = security.guard._refusals if security.guard is not None else Refusals()
    try:
        yield Pool(address, refusals.counts)
    finally:
        await server.stop(0)


def channels_of(security: Security) -> Channels:
    return Channels(security.grpc_channel)


async def test_who_has_the_right_is_served(authority: SuiteAuthority) -> None:
    async with (
        serving(authority.security(POOL, "west")) as pool,
        channels_of(authority.security(GATEWAY, "east")) as gateway,
        channels_of(authority.security(PREFILL, "west")) as prefill,
    ):
        assert await pool.unpin(gateway)
        await pool.lanes(prefill)
        assert pool.counts() == {}


@pytest.mark.parametrize(
    ("role", "dc", "method", "told"),
    [
        (
            PREFILL,
            "west",
            "unpin",
            "a prefill of west may not call .*/Unpin at the cachepool of west",
        ),
        (PREFILL, "east", "lanes", "that takes one of the same datacenter"),
        (ServiceRole.OPERATOR, "west", "unpin", "an? operator of west may not call"),
    ],
)
async def test_another_role_or_datacenter_is_refused_by_name(
    authority: SuiteAuthority, role: ServiceRole, dc: str, method: str, told: str
) -> None:
    async with (
        serving(authority.security(POOL, "west")) as pool,
        Channels(authority.channel_tls(authority.issue(role, dc))) as channels,
    ):
        with capture_logs() as logs, pytest.raises(PeerRefused, match=told):
            await getattr(pool, method)(channels)
        (line,) = [entry for entry in logs if entry["event"] == "connection_refused"]
        assert line["kind"] == "grpc"
        assert line["peer"].startswith("ipv4:127.0.0.1:")
        assert "may not call" in line["reason"]
        assert pool.counts() == {("grpc", "us"): 1}


async def test_a_method_that_is_in_no_table_is_for_nobody(authority: SuiteAuthority) -> None:
    async with (
        serving(authority.security(POOL, "west")) as pool,
        channels_of(authority.security(GATEWAY, "west")) as channels,
        asyncio.timeout(LIMIT_S),
    ):
        call: Any = channels.get(pool.address).unary_unary(f"/{SERVICE}/Snapshot2")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(b"", timeout=LIMIT_S)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_client_of_the_wrong_kind_of_certificate_learns_why(
    authority: SuiteAuthority, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """gRPC tells it only that the socket was closed; the channel asks, and says it in the log."""
    async with serving(authority.security(POOL, "west")) as pool:
        expired = authority.issue(GATEWAY, "old", days_ago=DAYS + 1)
        refusals = Refusals()
        async with Channels(authority.channel_tls(expired, refusals)) as channels:
            with capture_logs() as logs:
                with pytest.raises(WorkerLost):
                    await pool.unpin(channels)
                await until(lambda: bool(refusals.counts()))
        assert refusals.counts() == {("grpc", "peer"): 1}
        (line,) = [entry for entry in logs if entry["event"] == "connection_refused_by_peer"]
        assert line["peer"] == pool.address
        assert "hangs up when it has seen our certificate" in line["reason"]
        assert "the certificate of a gateway of old, which expired at 20" in line["reason"]
    assert "certificate has expired" in capfd.readouterr().err  # the server's line, by gRPC itself


async def test_strangers_get_nothing(authority: SuiteAuthority, tmp_path: Path) -> None:
    other = SuiteAuthority(tmp_path / "other")
    stranger = other.issue(GATEWAY, "west")
    (other.folder / "ca.pem").write_bytes(authority.pair.cert)  # it trusts us, we do not trust it
    async with serving(authority.security(POOL, "west")) as pool:
        async with Channels(authority.channel_tls(stranger)) as channels, Channels() as plain:
            for each in (channels, plain):
                with pytest.raises(WorkerLost):
                    await pool.unpin(each)
        nobody: Any = grpc.aio.secure_channel(
            pool.address,
            grpc.ssl_channel_credentials(authority.pair.cert),
            options=[("grpc.ssl_target_name_override", "prfaas.internal")],
        )
        async with nobody:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await CachePoolStub(nobody).Unpin(pb.UnpinRequest(pin="x"), timeout=LIMIT_S)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("wrong", ["role", "dc", "authority", "expired", "plain"])
async def test_a_client_does_not_speak_to_a_wrong_server(authority: SuiteAuthority, tmp_path: Path, wrong: str) -> None:
    """No prefill worker can act as a pool, whatever it announces."""
    other = SuiteAuthority(tmp_path / "other")
    security = authority.security(PREFILL if wrong == "role" else POOL, "east" if wrong == "dc" else "west")
    credentials = None
    if wrong in ("authority", "expired"):
        pair = (other if wrong == "authority" else authority).member(
            POOL, "west", days_ago=DAYS + 1 if wrong == "expired" else 0
        )
        credentials = grpc.ssl_server_credentials([(pair.key, pair.cert)], authority.pair.cert, True)
    if wrong == "plain":
        security = Security()
    refusals = Refusals()
    tls = authority.channel_tls(authority.issue(GATEWAY, "west"), refusals)
    async with serving(security, credentials) as pool, Channels(tls) as channels:
        channels.expect(pool.address, "west")
        with capture_logs() as logs, pytest.raises(PeerRefused, match="its certificate is not accepted"):
            await pool.unpin(channels)
        with capture_logs() as later:
            await until(lambda: bool(refusals.counts()))
        (line,) = [entry for entry in (*logs, *later) if entry["event"] == "connection_refused"]
        assert line["peer"] == pool.address
        assert refusals.counts() == {("grpc", "us"): 1}


async def test_the_role_is_that_of_the_service_which_is_called(authority: SuiteAuthority) -> None:
    async with (
        serving(authority.security(POOL, "west")) as pool,
        channels_of(authority.security(GATEWAY, "west")) as channels,
    ):
        with pytest.raises(PeerRefused), rpc_errors("pool"):
            async for _ in DecodeStub(channels.get(pool.address)).Generate(iter([pb.Control()]), timeout=LIMIT_S):
                pass
        health = health_pb2_grpc.HealthStub(channels.get(pool.address))
        assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)).status == 1


async def test_a_rotation_is_picked_up_by_new_connections_and_old_ones_go_on(authority: SuiteAuthority) -> None:
    """Both ends get new certificates, of a new authority too, while a stream is open."""
    pool_security, gateway_security = authority.security(POOL, "west"), authority.security(GATEWAY, "west")
    async with serving(pool_security) as pool, channels_of(gateway_security) as channels:
        stub = CachePoolStub(channels.get(pool.address))
        stream = stub.Snapshot(pb.SnapshotRequest(), timeout=LIMIT_S)
        first = await anext(aiter(stream))
        fresh = SuiteAuthority(authority.folder.parent / "fresh")
        (authority.folder / "ca.pem").write_bytes(fresh.pair.cert)  # the old authority is trusted no more
        for role in (POOL, GATEWAY):
            for path in fresh.issue(role, "west").paths[1:]:
                path.rename(authority.folder / path.name)
        assert await pool.unpin(channels), "by a new connection, since the old one would have the old certificate"
        late = await anext(aiter(stream))
        assert late.sequence > first.sequence
        old = SuiteAuthority.__new__(SuiteAuthority)
        old.folder, old.pair = authority.folder.parent / "old", authority.pair
        old.folder.mkdir()
        (old.folder / "ca.pem").write_bytes(fresh.pair.cert)
        async with Channels(old.channel_tls(old.issue(GATEWAY, "west"))) as behind:
            with pytest.raises(WorkerLost):
                await pool.unpin(behind)
        stream.cancel()
        await until(lambda: _num_connections(channels) == 1)


def _num_connections(channels: Channels) -> int:
    (tagging,) = channels._by_id.values()
    secured: Any = tagging._channel  # type: ignore[attr-defined]
    return len(secured._by_name) + len(secured._retired)
