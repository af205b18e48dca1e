"""The host: ready when its conditions hold, announced while it takes work, and gone with whatever crashes."""

import asyncio

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shared import host as hosting
from shared.bus.connection import Connection
from shared.bus.events import TOPIC_LOAD, TOPIC_MEMBERSHIP, LoadEvent, MembershipEvent
from shared.bus.producer import Producer
from shared.config import ServiceSettings
from shared.errors import SettingsError
from shared.host import SERVES_GRPC, Host, WorkerServer, open_host
from shared.ids import Datacenter, WorkerId
from tests.support.waiting import until

WORKER = WorkerId("cachepool-east")


@pytest.fixture(autouse=True)
def _logging_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "configure", lambda *_names, **_fields: None)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes | None]]:
    """What leaves for the bus, whose broker answers at once."""
    events: list[tuple[str, bytes | None]] = []

    async def connected(self: Connection) -> None:
        self._on_connected()
        await asyncio.Event().wait()

    def publish(self: Producer, topic: str, key: str, value: bytes | None) -> bool:
        assert key == WORKER
        events.append((topic, value))
        return True

    monkeypatch.setattr(Connection, "run", connected)
    monkeypatch.setattr(Producer, "publish", publish)
    return events


def settings() -> ServiceSettings:
    return ServiceSettings(dc="east", worker_id=WORKER, drain_s=1.0)


def membership(server: WorkerServer) -> MembershipEvent:
    return MembershipEvent(
        worker=WORKER, role="cachepool", dc=Datacenter("east"), address=server.address, epoch=server.epoch
    )


def load(server: WorkerServer) -> LoadEvent:
    return LoadEvent(
        worker=WORKER, epoch=server.epoch, running=0, waiting=0, kv_usage=0.0, speed_tokens_per_s=0.0, at_ms=1
    )


async def serving_status(address: str) -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    return int(reply.status)


def is_ready(host: Host) -> bool:
    return host.health.ready


async def test_a_host_is_ready_once_all_its_conditions_hold_whether_there_is_a_broker_or_not() -> None:
    async with open_host(settings(), "model", SERVES_GRPC) as host:
        assert not is_ready(host)
        host.health.set("model", True)
        assert not is_ready(host)
        host.health.set(SERVES_GRPC, True)
        assert is_ready(host)
        assert not host.health.conditions["kafka"].ok


async def test_jobs_end_with_the_host() -> None:
    ended: list[str] = []

    async def job() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("job")

    async with open_host(settings()) as host:
        host.jobs.start(job(), name="job")
        await asyncio.sleep(0)
    assert ended == ["job"]


async def test_a_job_that_crashes_ends_the_host() -> None:
    async def crash() -> None:
        raise RuntimeError("boom")

    with pytest.raises(ExceptionGroup) as raised:  # noqa: PT012 - the block is what ends
        async with open_host(settings()) as host:
            host.jobs.start(crash(), name="crash")
            await asyncio.Event().wait()
    assert raised.group_contains(RuntimeError, match="boom")


async def test_a_worker_serves_and_is_announced_until_it_leaves(sent: list[tuple[str, bytes | None]]) -> None:
    async with open_host(settings(), SERVES_GRPC) as host:
        server = WorkerServer(host)
        event = membership(server)
        assert sent == [], "its port is bound, but nobody shall call it yet"
        await server.start(event, lambda: load(server))
        assert await serving_status(server.address) == health_pb2.HealthCheckResponse.SERVING
        await until(lambda: len(sent) >= 2)
        assert sent[:2] == [(TOPIC_MEMBERSHIP, event.encode()), (TOPIC_LOAD, load(server).encode())]
        await server.leave()
        assert sent[-2:] == [(TOPIC_MEMBERSHIP, event.leaving().encode()), (TOPIC_MEMBERSHIP, None)]
        assert await serving_status(server.address) == health_pb2.HealthCheckResponse.SERVING
        assert await server.stop() == 0
        assert not host.health.ready


async def test_a_worker_that_was_never_started_leaves_and_stops(sent: list[tuple[str, bytes | None]]) -> None:
    async with open_host(settings()) as host:
        server = WorkerServer(host)
        await server.leave()
        assert await server.stop() == 0
    assert sent == []


async def test_a_port_that_is_taken_is_a_problem_of_the_settings() -> None:
    async with open_host(settings()) as first:
        taken = int(WorkerServer(first).address.rpartition(":")[2])
        async with open_host(ServiceSettings(grpc_port=taken)) as second:
            with pytest.raises(SettingsError, match=str(taken)):
                WorkerServer(second)
