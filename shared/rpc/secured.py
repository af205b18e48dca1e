"""A channel over TLS that knows whom it expects, and follows the certificates while they change."""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

import grpc
import grpc.aio

from shared.rpc.options import Options
from shared.security.channels import ChannelTls

EXPLAIN_EVERY_S = 10.0
"""Between two questions why a server cannot be called."""


class SecuredChannel(grpc.aio.Channel):
    """Owns a connection for each name that its address should have: that is the role of the service that is called.

    A call that begins after certificates changed opens a new connection. One that is running stays on its old one,
    which is closed when no call is left on it. Belongs to one event loop.
    """

    def __init__(self, address: str, tls: ChannelTls, options: Options, expected_dc: Callable[[], str]) -> None:
        self._address = address
        self._tls = tls
        self._options = options
        self._expected_dc = expected_dc
        self._by_name: dict[str, _Connection] = {}
        self._retired: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._explain_at = 0.0

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._callable("unary_unary", method, args, kwargs)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._callable("unary_stream", method, args, kwargs)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._callable("stream_unary", method, args, kwargs)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._callable("stream_stream", method, args, kwargs)

    async def close(self, grace: float | None = None) -> None:
        connections = [*self._by_name.values(), *self._retired]
        self._by_name.clear()
        self._retired.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in connections:
            await connection.channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._any().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._any().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._any().channel_ready()

    async def __aenter__(self) -> "SecuredChannel":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _any(self) -> grpc.aio.Channel:
        """Return the connection that was used last; without any, one to whichever server of the suite this is."""
        for connection in reversed(self._by_name.values()):
            if connection.credentials is self._tls.credentials():
                return connection.channel
        return self._connection("").channel

    def _callable(self, kind: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        service = method.strip("/").partition("/")[0]
        made: dict[_Connection, Any] = {}  # one, but for the moment

        def start(*call_args: Any, **call_kwargs: Any) -> Any:
            connection = self._connection(service)
            multi_callable = made.get(connection)
            if multi_callable is None:
                made.clear()
                multi_callable = made[connection] = getattr(connection.channel, kind)(method, *args, **kwargs)
            call = multi_callable(*call_args, **call_kwargs)
            connection.num_calls += 1
            call.add_done_callback(lambda _: self._ended(connection))
            return call

        return start

    def _connection(self, service: str) -> "_Connection":
        name = self._tls.name_for(service, self._expected_dc())
        credentials = self._tls.credentials()
        connection = self._by_name.get(name)
        if connection is None or connection.credentials is not credentials:
            if connection is not None:
                self._retired.add(connection)
                self._close_if_idle(connection)
            options = [*self._options, ("grpc.ssl_target_name_override", name)]
            channel = grpc.aio.secure_channel(self._address, credentials, options=options)
            connection = self._by_name[name] = _Connection(name, credentials, channel)
        return connection

    def _ended(self, connection: "_Connection") -> None:
        connection.num_calls -= 1
        if connection in self._retired:
            self._close_if_idle(connection)
        elif connection.is_failing and monotonic() >= self._explain_at:
            self._explain_at = monotonic() + EXPLAIN_EVERY_S
            self._start(self._tls.explain(self._address, connection.name), "why a peer is not reached")

    def _close_if_idle(self, connection: "_Connection") -> None:
        if not connection.num_calls:
            self._retired.discard(connection)
            self._start(connection.channel.close(), "closing a channel of an old certificate")

    def _start(self, work: Any, name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Connection:
    """A channel of gRPC's own, and how many calls are on it."""

    def __init__(self, name: str, credentials: grpc.ChannelCredentials, channel: grpc.aio.Channel) -> None:
        self.name = name
        self.credentials = credentials
        self.channel = channel
        self.num_calls = 0

    @property
    def is_failing(self) -> bool:
        try:
            return self.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        except grpc.aio.UsageError:  # it was closed
            return False
