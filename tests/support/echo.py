"""A gRPC service of bytes with a method of each kind, to see what every call goes through."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc
import grpc.aio

from shared.rpc.client import Channels, rpc_errors
from shared.rpc.server import GrpcServer
from shared.service.health import Health
from shared.service.lifecycle import InFlight

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream", "written_stream")
SERVICE = "prfaas.test.Echo"

Step = Callable[[bytes, grpc.aio.ServicerContext[Any, Any]], Awaitable[bytes]]


class EchoPeer(NamedTuple):
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
async def serving(step: Step, port: int = 0, **options: Any) -> AsyncIterator[EchoPeer]:
    health, inflight = Health("model"), InFlight()
    health.set("model", True)
    server = GrpcServer("127.0.0.1", port, health, inflight, **options)
    server.grpc.add_generic_rpc_handlers([handlers(step)])
    address = f"127.0.0.1:{await server.start()}"
    async with Channels() as channels:
        try:
            yield EchoPeer(server, health, inflight, channels.get(address), channels, address)
        finally:
            await server.stop(0)
            assert inflight.count == 0


def raising(error: BaseException) -> Step:
    async def step(request: bytes, context: object) -> bytes:
        raise error

    return step


async def echo(request: bytes, context: object) -> bytes:
    return request
