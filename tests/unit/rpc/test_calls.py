"""Real calls through a real server: request ids, errors, draining, cancellation."""

import asyncio
import inspect
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from shared import errors
from shared.deadline import Deadline
from shared.errors import (
    BadRequest,
    DeadlineExceeded,
    Draining,
    Internal,
    Overloaded,
    PrfaasError,
    SettingsError,
    WorkerLost,
)
from shared.health import Health
from shared.lifecycle import InFlight
from shared.log import bound_request, current_request_id
from shared.rpc.client import Channels, rpc_errors
from shared.rpc.pool import PoolClient
from shared.rpc.server import GrpcServer, call_deadline

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream", "written_stream")
SERVICE = "prfaas.test.Echo"

Step = Callable[[bytes, grpc.aio.ServicerContext[Any, Any]], Awaitable[bytes]]


class Peer(NamedTuple):
    server: GrpcServer
    health: Health
    inflight: InFlight
    channel: Any  # a grpc.aio.Channel: its stubs know no methods without generated code
    channels: Channels
    address: str

    async def call(self, kind: str, *, timeout: float | None = 10, requests: int = 1) -> list[bytes]:
        """Call the method and return its answers, as a client of the suite does."""
        method = f"/{SERVICE}/{kind}"
        sent = [b"ping"] * requests
        with rpc_errors("echo"):
            if kind == "unary_unary":
                return [await self.channel.unary_unary(method)(sent[0], timeout=timeout)]
            if kind == "stream_unary":
                return [await self.channel.stream_unary(method)(iter(sent), timeout=timeout)]
            if kind == "stream_stream":
                streamed = self.channel.stream_stream(method)(iter(sent), timeout=timeout)
                return [answer async for answer in streamed]
            return [answer async for answer in self.channel.unary_stream(method)(sent[0], timeout=timeout)]


def handlers(step: Step) -> grpc.GenericRpcHandler:
    """Return a service with a method of each kind, each of which runs `step` for every request."""

    async def unary_unary(request: bytes, context: Any) -> bytes:
        return await step(request, context)

    async def unary_stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(2):
            yield await step(request, context)

    async def stream_unary(requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b"".join([await step(request, context) async for request in requests])

    async def stream_stream(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield await step(request, context)

    async def written_stream(request: bytes, context: Any) -> None:
        await context.write(await step(request, context))

    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "unary_unary": grpc.unary_unary_rpc_method_handler(unary_unary),
            "unary_stream": grpc.unary_stream_rpc_method_handler(unary_stream),
            "stream_unary": grpc.stream_unary_rpc_method_handler(stream_unary),
            "stream_stream": grpc.stream_stream_rpc_method_handler(stream_stream),
            "written_stream": grpc.unary_stream_rpc_method_handler(written_stream),
        },
    )


@asynccontextmanager
async def serving(step: Step, **options: Any) -> AsyncIterator[Peer]:
    health, inflight = Health("model"), InFlight()
    health.set("model", True)
    server = GrpcServer("127.0.0.1", 0, health, inflight, **options)
    server.grpc.add_generic_rpc_handlers([handlers(step)])
    address = f"127.0.0.1:{await server.start()}"
    async with Channels() as channels:
        try:
            yield Peer(server, health, inflight, channels.get(address), channels, address)
        finally:
            await server.stop(0)
            assert inflight.count == 0


def raising(error: BaseException) -> Step:
    async def step(request: bytes, context: object) -> bytes:
        raise error

    return step


async def echo(request: bytes, context: object) -> bytes:
    return request


def all_errors() -> list[type[PrfaasError]]:
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, PrfaasError)]
    return [cls for cls in classes if cls is not PrfaasError]


@pytest.mark.parametrize("kind", KINDS)
async def test_answers_and_request_id(kind: str) -> None:
    async def whoami(request: bytes, context: object) -> bytes:
        return str(current_request_id()).encode()

    async with serving(whoami) as peer:
        with bound_request("req-7"):
            assert set(await peer.call(kind)) == {b"req-7"}
        (anonymous,) = set(await peer.call("unary_unary"))
        assert len(anonymous) == 32  # a call without an id gets one
        assert peer.inflight.count == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_every_error_keeps_its_class(kind: str) -> None:
    current: list[PrfaasError] = []

    async def step(request: bytes, context: object) -> bytes:
        raise current[0]

    assert len(all_errors()) >= 15
    async with serving(step) as peer:
        for cls in all_errors():
            current[:] = [cls(f"{cls.__name__}: n\u00e4her\nzwei", param="messages[0]")]
            with pytest.raises(PrfaasError) as raised:
                await peer.call(kind)
            assert type(raised.value) is cls
            assert str(raised.value) == f"{cls.__name__}: n\u00e4her\nzwei"
            assert raised.value.param == "messages[0]"


async def test_what_else_an_error_carries() -> None:
    async with serving(raising(Overloaded("busy", retry_after_s=2.5))) as peer:
        with pytest.raises(Overloaded) as overloaded:
            await peer.call("unary_unary")
        assert overloaded.value.retry_after_s == 2.5
    long = "\u20ac" * 100_000
    async with serving(raising(BadRequest(long, param="\u20ac"))) as peer:
        with pytest.raises(BadRequest) as bad:
            await peer.call("unary_unary")
        assert long.startswith(str(bad.value))
        assert len(str(bad.value)) > 1000
    group = ExceptionGroup("from a TaskGroup", [BadRequest("first"), Overloaded("second")])
    async with serving(raising(group)) as peer:
        with pytest.raises(BadRequest, match="first"):
            await peer.call("unary_stream")


@pytest.mark.parametrize("kind", KINDS)
async def test_unknown_exceptions_are_logged_and_leak_nothing(kind: str) -> None:
    async with serving(raising(KeyError("secret path"))) as peer:
        with capture_logs() as logs, pytest.raises(Internal) as raised:
            await peer.call(kind)
        assert str(raised.value) == "internal error"
        crash = next(entry for entry in logs if entry["event"] == "rpc_crashed")
        assert crash["method"] == f"/{SERVICE}/{kind}"
        assert isinstance(crash["exc_info"], KeyError)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_dead_peer_and_a_missing_method(kind: str) -> None:
    async with serving(echo) as peer:
        channel = peer.channels.get("127.0.0.1:1")
        with pytest.raises(WorkerLost, match="echo: "):
            await peer._replace(channel=channel).call(kind)
        with pytest.raises(Internal, match="echo: "), rpc_errors("echo"):
            await peer.channel.unary_unary(f"/{SERVICE}/Nothing")(b"")


async def test_deadlines_reach_the_handler() -> None:
    seen: list[float] = []

    async def slow(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        seen.append(call_deadline(context, 60).remaining())
        await asyncio.sleep(60)
        return b""

    async with serving(slow) as peer:
        for kind in ("unary_unary", "unary_stream"):
            with pytest.raises(DeadlineExceeded):
                await peer.call(kind, timeout=0.3)
        assert seen
        assert all(remaining < 1 for remaining in seen)
        assert await peer.inflight.idle(1)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_that_vanishes_cancels_the_handler(kind: str) -> None:
    """The handler's `finally` has run once the call has left the count of work in flight."""
    entered, left = asyncio.Event(), []

    async def step(request: bytes, context: object) -> bytes:
        entered.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.02)  # clean-up that waits
            left.append(request)
        return b""

    async with serving(step) as peer:
        task = asyncio.create_task(peer.call(kind))
        await asyncio.wait_for(entered.wait(), 5)
        assert peer.inflight.count == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await peer.inflight.idle(2)
        assert left == [b"ping"]


async def test_a_generator_is_closed_when_its_reader_goes_between_messages() -> None:
    closed = asyncio.Event()

    async def many(request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(1 << 20)  # the flow-control window fills: the handler waits in write
        finally:
            closed.set()

    health, inflight = Health(), InFlight()
    server = GrpcServer("127.0.0.1", 0, health, inflight)
    method: Any = grpc.unary_stream_rpc_method_handler(many)
    server.grpc.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {"Many": method})])
    async with Channels() as channels:
        channel: Any = channels.get(f"127.0.0.1:{await server.start()}")
        call = channel.unary_stream(f"/{SERVICE}/Many")(b"")
        assert len(await call.read()) == 1 << 20
        await asyncio.sleep(0.05)
        call.cancel()
        assert await inflight.idle(2)
        assert closed.is_set()
    await server.stop(0)


async def test_a_closed_channel_is_not_our_own_cancellation() -> None:
    entered = asyncio.Event()

    async def step(request: bytes, context: object) -> bytes:
        entered.set()
        await asyncio.sleep(60)
        return b""

    async with serving(step) as peer:
        for kind in ("unary_unary", "unary_stream"):
            entered.clear()
            task = asyncio.create_task(peer._replace(channel=peer.channels.get(peer.address)).call(kind))
            await asyncio.wait_for(entered.wait(), 5)
            await peer.channels.forget(peer.address)
            with pytest.raises(WorkerLost):
                await task


async def test_writing_to_a_call_that_the_server_has_ended() -> None:
    async with serving(raising(BadRequest("no"))) as peer:
        call = peer.channel.stream_stream(f"/{SERVICE}/stream_stream")()
        with pytest.raises((BadRequest, WorkerLost)), rpc_errors("echo"):  # noqa: PT012
            for _ in range(100):
                await call.write(b"x")
                await asyncio.sleep(0.01)
        with pytest.raises(BadRequest), rpc_errors("echo"):  # whoever reads learns why
            await call.read()


async def test_draining_lets_running_calls_finish_and_refuses_new_ones() -> None:
    release, entered = asyncio.Event(), asyncio.Event()

    async def step(request: bytes, context: object) -> bytes:
        entered.set()
        await release.wait()
        return request

    allowed = f"/{SERVICE}/stream_unary"
    async with serving(step, accept_while_draining=[allowed]) as peer:
        running = asyncio.create_task(peer.call("unary_stream"))
        await asyncio.wait_for(entered.wait(), 5)
        health = health_pb2_grpc.HealthStub(peer.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))).status == 1
        stopping = asyncio.create_task(peer.server.stop(5))
        await asyncio.sleep(0.05)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == 2
        with pytest.raises(Draining):
            await peer.call("unary_unary")
        still = asyncio.create_task(peer.call("stream_unary"))
        await asyncio.sleep(0.05)
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
            await asyncio.wait_for(entered.acquire(), 5)
        with capture_logs() as logs:
            assert await peer.server.stop(0.05) == 3
        assert len(left) == 3  # every finally has run
        assert logs[-1]["event"] == "grpc_server_stopped"
        assert logs[-1]["num_calls_cancelled"] == 3
        for call in calls:
            with pytest.raises(WorkerLost):
                await call


async def test_a_publication_to_nobody_fails_as_one_of_ours() -> None:
    """Also when it is closed before its first read: then gRPC raises an error without a public name."""
    async with Channels() as channels:
        with socket.create_server(("127.0.0.1", 0)) as bound:
            address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(WorkerLost):
            async with PoolClient(channels, address).publish(Deadline.after(10)):
                pass


async def test_a_peer_that_restarts_is_found_again() -> None:
    async with serving(echo) as first:
        assert await first.call("unary_unary") == [b"ping"]
        await first.server.stop(0)
        with pytest.raises(WorkerLost):
            await first.call("unary_unary")
        second = GrpcServer("127.0.0.1", first.server.port, Health(), InFlight())
        second.grpc.add_generic_rpc_handlers([handlers(echo)])
        await second.start()
        async with asyncio.timeout(3):
            while True:
                try:
                    assert await first.call("unary_unary") == [b"ping"]
                    break
                except WorkerLost:
                    await asyncio.sleep(0.05)
        await second.stop(0)


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


async def test_large_messages_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")

    async def big(request: bytes, context: object) -> bytes:
        return bytes(32 << 20)

    async with serving(big) as peer:
        assert [len(answer) for answer in await peer.call("unary_unary")] == [32 << 20]
