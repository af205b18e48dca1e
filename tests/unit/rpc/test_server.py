"""A server's life: health, draining, its end, a restart, a port that is taken."""

import asyncio
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from shared.errors import Draining, SettingsError, WorkerLost
from shared.rpc.client import Channels, rpc_errors
from shared.rpc.server import GrpcServer
from shared.service.health import Health
from shared.service.lifecycle import InFlight
from tests.support.echo import SERVICE, echo, handlers, serving
from tests.support.suite import free_ports
from tests.support.waiting import LIMIT_S, until


async def test_draining_lets_running_calls_finish_and_refuses_new_ones() -> None:
    release, entered = asyncio.Event(), asyncio.Event()

    async def step(request: bytes, context: object) -> bytes:
        entered.set()
        await release.wait()
        return request

    allowed = f"/{SERVICE}/stream_unary"
    async with serving(step, accept_while_draining=[allowed]) as peer:
        running = asyncio.create_task(peer.call("unary_stream"))
        await asyncio.wait_for(entered.wait(), LIMIT_S)
        health = health_pb2_grpc.HealthStub(peer.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))).status == 1
        stopping = asyncio.create_task(peer.server.stop(LIMIT_S))
        await until(lambda: peer.inflight.draining)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == 2
        with pytest.raises(Draining):
            await peer.call("unary_unary")
        still = asyncio.create_task(peer.call("stream_unary"))
        await until(lambda: peer.inflight.count == 2)
        release.set()
        assert await still == [b"ping"]
        assert await running == [b"ping", b"ping"]
        assert await stopping == 0


async def test_stop_cancels_what_outlasts_the_grace_and_says_how_many() -> None:
    entered, left = asyncio.Semaphore(0), []

    async def step(request: bytes, context: object) -> bytes:
        entered.release()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            left.append(request)
        return b""

    async with serving(step) as peer:
        calls = [asyncio.create_task(peer.call(kind)) for kind in ("unary_unary", "unary_stream", "stream_stream")]
        for _ in calls:
            await asyncio.wait_for(entered.acquire(), LIMIT_S)
        with capture_logs() as logs:
            assert await peer.server.stop(0.05) == 3
        assert len(left) == 3  # every finally has run
        assert logs[-1]["event"] == "grpc_server_stopped"
        assert logs[-1]["num_calls_cancelled"] == 3
        for call in calls:
            with pytest.raises(WorkerLost):
                await call


async def test_a_peer_that_restarts_is_found_again() -> None:
    (port,) = free_ports(1)  # one that the kernel gives nobody else while no server listens there
    async with serving(echo, port) as first:
        assert await first.call("unary_unary") == [b"ping"]
        await first.server.stop(0)
        with pytest.raises(WorkerLost):
            await first.call("unary_unary")
        second = GrpcServer("127.0.0.1", first.server.port, Health(), InFlight())
        second.grpc.add_generic_rpc_handlers([handlers(echo)])
        await second.start()
        async with asyncio.timeout(LIMIT_S):
            while True:
                try:
                    assert await first.call("unary_unary") == [b"ping"]
                    break
                except WorkerLost:
                    await asyncio.sleep(0.05)
        await second.stop(0)


async def test_a_new_channel_does_not_wait_for_what_another_one_was_refused() -> None:
    (port,) = free_ports(1)
    async with Channels() as old:
        channel: Any = old.get(f"127.0.0.1:{port}")
        with pytest.raises(WorkerLost), rpc_errors("nobody"):
            await channel.unary_unary(f"/{SERVICE}/unary_unary")(b"")
        async with serving(echo, port) as peer:  # with channels of its own
            assert await peer.call("unary_unary") == [b"ping"]


async def test_a_taken_port_is_a_settings_error() -> None:
    async with serving(echo) as peer:
        second = GrpcServer("127.0.0.1", peer.server.port, Health(), InFlight())
        with pytest.raises(SettingsError, match=f"PRFAAS_GRPC_PORT: 127.0.0.1:{peer.server.port} is already in use"):
            await second.start()
        await second.stop(0)


async def test_health_follows_conditions_and_reflection_names_services() -> None:
    async with serving(echo) as peer:
        stub = health_pb2_grpc.HealthStub(peer.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        peer.health.set("model", False)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert peer.inflight.count == 0  # a watch is nobody's work

        request = reflection_pb2.ServerReflectionRequest(list_services="")
        call = reflection_pb2_grpc.ServerReflectionStub(peer.channel).ServerReflectionInfo(iter([request]))
        listed = [service.name for service in (await call.read()).list_services_response.service]
        assert {SERVICE, "grpc.health.v1.Health"} <= set(listed)
