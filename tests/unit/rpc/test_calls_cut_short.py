"""Calls that end before they are through: deadlines, clients that vanish, channels that close."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from shared.errors import (
    DeadlineExceeded,
    WorkerLost,
)
from shared.rpc.client import Channels
from shared.rpc.server import GrpcServer, call_deadline
from shared.service.health import Health
from shared.service.lifecycle import InFlight
from tests.support.echo import KINDS, SERVICE, serving
from tests.support.waiting import LIMIT_S


async def test_deadlines_reach_the_handler() -> None:
    seen: list[float] = []

    async def slow(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        seen.append(call_deadline(context, 60).remaining())
        await asyncio.sleep(60)
        return b""

    async with serving(slow) as peer:
        for kind in ("unary_unary", "unary_stream"):
            num_seen = len(seen)
            async with asyncio.timeout(LIMIT_S):
                while len(seen) == num_seen:  # a call whose deadline is over before it arrives is not handled at all
                    with pytest.raises(DeadlineExceeded):
                        await peer.call(kind, timeout=0.3)
        assert all(remaining < 1 for remaining in seen)
        assert await peer.inflight.idle(LIMIT_S)


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
        await asyncio.wait_for(entered.wait(), LIMIT_S)
        assert peer.inflight.count == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await peer.inflight.idle(LIMIT_S)
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
        await asyncio.sleep(0.05)  # most likely in write; what is checked holds wherever it is
        call.cancel()
        assert await inflight.idle(LIMIT_S)
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
            await asyncio.wait_for(entered.wait(), LIMIT_S)
            await peer.channels.forget(peer.address)
            with pytest.raises(WorkerLost):
                await task
