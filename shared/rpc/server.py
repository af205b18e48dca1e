"""The gRPC server of a service: health, reflection, the call boundary, and an end that leaves nobody hanging."""

import asyncio
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from shared.deadline import Deadline
from shared.errors import SettingsError
from shared.log import get_logger
from shared.rpc.interceptors import CallBoundary
from shared.rpc.options import DEFAULT_MAX_MESSAGE_BYTES, DEFAULT_SILENCE_S, server_options
from shared.security.guard import PeerGuard
from shared.service.health import Health
from shared.service.lifecycle import InFlight

log = get_logger()

# Answers of handlers that have returned are still on their way out; health watches never end.
_FLUSH_S = 0.25
_CANCEL_LIMIT_S = 2.0


class GrpcServer:
    """Owns a `grpc.aio` server. Add servicers to `.grpc`, then `start`; `stop` returns when every handler is done.

    `bind` comes before `start` where somebody has to know the port earlier.
    """

    def __init__(
        self,
        host: str,
        port: int,
        health: Health,
        inflight: InFlight,
        credentials: grpc.ServerCredentials | None = None,
        *,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        silence_s: float = DEFAULT_SILENCE_S,
        guard: PeerGuard | None = None,
        accept_while_draining: Collection[str] = (),
    ) -> None:
        """Without `credentials` anybody may call, in plain text; with a `guard` only who has the right to.

        Calls of a peer that has given no sign of life for `silence_s` are cancelled.

        `accept_while_draining` names methods that running work still needs, such as `/prfaas.v1.CachePool/Fetch`.
        """
        self.host = host
        self.port = port
        self._is_bound = False
        boundary = CallBoundary(inflight, accept_while_draining, guard)
        self._server = grpc.aio.server(interceptors=[boundary], options=server_options(max_message_bytes, silence_s))
        self._services = _ServiceCollector(self._server)
        self._credentials = credentials
        self._health = health
        self._health_servicer = grpc_health.aio.HealthServicer()
        self._health_mirror: asyncio.Task[None] | None = None
        self._inflight = inflight

    @property
    def grpc(self) -> grpc.aio.Server:
        """What the generated `add_…Servicer_to_server` functions take."""
        return self._services

    def bind(self) -> int:
        """Return the bound port; idempotent. Calls that come wait for `start`. Raises SettingsError if it is taken."""
        if not self._is_bound:
            try:
                self.port = self._open_port(f"{self.host}:{self.port}")
            except RuntimeError as error:
                raise SettingsError(
                    f"PRFAAS_GRPC_HOST, PRFAAS_GRPC_PORT: {self.host}:{self.port} is already in use or cannot be bound"
                ) from error
            self._is_bound = True
        return self.port

    async def start(self) -> int:
        """Bind, serve, and return the bound port. Raises SettingsError when the port is taken."""
        names = tuple(self._services.names)
        health_pb2_grpc.add_HealthServicer_to_server(self._health_servicer, self._server)
        reflection.enable_server_reflection((*names, grpc_health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        self.bind()
        await self._publish_health()
        await self._server.start()
        self._health_mirror = asyncio.create_task(self._mirror_health(), name="grpc-health")
        log.info("grpc_server_started", host=self.host, port=self.port, services=names)
        return self.port

    def _open_port(self, address: str) -> int:
        if self._credentials is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, self._credentials)

    async def stop(self, grace_s: float) -> int:
        """Drain and close; return how many calls had to be cancelled. Safe to call twice, or before `start`."""
        self._health.drain()
        await self._health_servicer.enter_graceful_shutdown()
        self._inflight.drain()
        await self._inflight.idle(grace_s)
        num_cancelled = self._inflight.count
        await self._server.stop(None if num_cancelled else _FLUSH_S)
        # gRPC's stop() returns before the handlers' finally blocks have run; the count says when they have.
        await self._inflight.idle(_CANCEL_LIMIT_S)
        if self._health_mirror is not None:
            self._health_mirror.cancel()
            await asyncio.wait([self._health_mirror])
        log.info("grpc_server_stopped", num_calls_cancelled=num_cancelled, num_calls_stuck=self._inflight.count)
        return num_cancelled

    async def _mirror_health(self) -> None:
        version = self._health.version
        while True:
            await self._publish_health()
            version = await self._health.changed(version)

    async def _publish_health(self) -> None:
        states = health_pb2.HealthCheckResponse
        status = states.SERVING if self._health.ready else states.NOT_SERVING
        for name in ("", *self._services.names):
            await self._health_servicer.set(name, status)


def call_deadline(context: grpc.aio.ServicerContext[Any, Any], default_s: float) -> Deadline:
    """Return the deadline that came with the call, or one `default_s` from now: no wait is without one."""
    remaining_s = context.time_remaining()
    return Deadline.after(default_s if remaining_s is None else remaining_s)


class _ServiceCollector(grpc.aio.Server):
    """Passes servicers on to the real server and remembers their names, for health and reflection."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server
        self.names: list[str] = []

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        handlers = list(generic_rpc_handlers)
        self.names += [handler.service_name() for handler in handlers if isinstance(handler, grpc.ServiceRpcHandler)]
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: "Mapping[str, grpc.RpcMethodHandler[Any, Any]]"
    ) -> None:
        self._server.add_registered_method_handlers(service_name, method_handlers)

    def add_insecure_port(self, address: str) -> int:
        return self._server.add_insecure_port(address)

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        return self._server.add_secure_port(address, server_credentials)

    async def start(self) -> None:
        await self._server.start()

    async def stop(self, grace: float | None) -> None:
        await self._server.stop(grace)

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        return await self._server.wait_for_termination(timeout)
