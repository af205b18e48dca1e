"""Outgoing gRPC: one owner of the channels of a process, and the mapping of failed calls to our errors."""

import asyncio
from collections.abc import Collection
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from shared.errors import WorkerLost
from shared.rpc.interceptors import error_from_call, request_metadata
from shared.rpc.options import (
    DEFAULT_MAX_MESSAGE_BYTES,
    DEFAULT_SILENCE_S,
    SHARED_CHANNEL,
    ChannelId,
    channel_options,
    client_options,
)
from shared.rpc.secured import SecuredChannel
from shared.security.channels import ChannelTls

MAX_EXPECTED = 8192
"""Addresses whose datacenter is remembered."""


class Channels:
    """Owns one channel for each address and id; stubs made on them may be kept until `close`."""

    def __init__(
        self,
        tls: ChannelTls | None = None,
        *,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        silence_s: float = DEFAULT_SILENCE_S,
    ) -> None:
        """Without `tls` calls are in plain text. Calls to a peer end as `WorkerLost` once it has given no sign
        of life for `silence_s`.
        """
        self._tls = tls
        self._options = client_options(max_message_bytes, silence_s)
        self._by_id: dict[tuple[str, ChannelId], grpc.aio.Channel] = {}
        self._dcs: dict[str, str] = {}
        self._closed = False

    def get(self, address: str, channel_id: ChannelId = SHARED_CHANNEL) -> grpc.aio.Channel:
        """Return the channel to `host:port`. It connects by itself, and again after the peer was away.

        Channels of different ids have TCP connections of their own.
        """
        assert not self._closed, "channels are closed"
        channel = self._by_id.get((address, channel_id))
        if channel is None:
            channel = _TaggingChannel(self._open(address, channel_id))
            self._by_id[address, channel_id] = channel
        return channel

    def expect(self, address: str, dc: str) -> None:
        """Say in which datacenter an address should be: under TLS a server that is elsewhere is not spoken to."""
        if dc:
            self._dcs.pop(address, None)
            self._dcs[address] = dc
            if len(self._dcs) > MAX_EXPECTED:
                del self._dcs[next(iter(self._dcs))]  # the one that was named longest ago

    def expected_dc(self, address: str) -> str:
        """Return where an address should be; empty where nobody has said so."""
        return self._dcs.get(address, "")

    def _open(self, address: str, channel_id: ChannelId) -> grpc.aio.Channel:
        options = [*self._options, *channel_options(channel_id)]
        if self._tls is None:
            return grpc.aio.insecure_channel(address, options=options)
        return SecuredChannel(address, self._tls, options, lambda: self.expected_dc(address))

    async def forget(self, address: str, channel_ids: Collection[ChannelId] | None = None) -> None:
        """Close these channels of a worker, or all: it has left for good. Their calls in flight end as WorkerLost."""
        if channel_ids is None:
            self._dcs.pop(address, None)
        of_worker = [key for key in self._by_id if key[0] == address]
        for key in [key for key in of_worker if channel_ids is None or key[1] in channel_ids]:
            if (channel := self._by_id.pop(key, None)) is not None:
                await channel.close()

    async def close(self) -> None:
        """Close every channel; idempotent."""
        self._closed = True
        for address in {address for address, _ in self._by_id}:
            await self.forget(address)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class rpc_errors:  # noqa: N801 - read as a function, as contextlib's own
    """Turn every failure of a call inside the body into a PrfaasError; `peer` names the other side in messages.

    Wraps whatever touches the call: awaiting it, iterating, `read`, `write`. When our own task is being cancelled,
    CancelledError passes; when only the call was (its channel was closed, say), that is a WorkerLost.

    A class, since every token passes through it: a generator takes five times as long.
    """

    __slots__ = ("_peer",)

    def __init__(self, peer: str) -> None:
        self._peer = peer

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        if failure is None:
            return
        if isinstance(failure, grpc.aio.AioRpcError):
            raise error_from_call(failure, self._peer) from failure
        if isinstance(failure, (asyncio.InvalidStateError, grpc.aio.UsageError, grpc.aio.InternalError)):
            # Writing to, or opening, a call whose other end is gone already; its status went to whoever reads.
            raise WorkerLost(f"{self._peer}: the call is over") from failure
        if isinstance(failure, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                raise WorkerLost(f"{self._peer}: the call was cancelled") from failure


class _TaggingChannel(grpc.aio.Channel):
    """Adds the request id to each call's metadata.

    gRPC's client interceptors could do it, but they put a queue and a task between a stream and its reader.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _tagging(self._channel.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _tagging(self._channel.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _tagging(self._channel.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _tagging(self._channel.stream_stream(*args, **kwargs))

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.close()


def _tagging(call: Any) -> Any:
    def start(*args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        return call(*args, metadata=(*(metadata or ()), *request_metadata()), **kwargs)

    return start
