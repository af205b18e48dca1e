"""HTTP servers and the routes that all of them have: /metrics, /livez and /readyz."""

import errno
import ssl
from collections.abc import Mapping
from typing import Any, Protocol, Self

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from shared.errors import PeerRefused, SettingsError
from shared.service.health import Health

_CANCEL_LIMIT_S = 1.0


class ReaderGuard(Protocol):
    """Who may read metrics, where that is not everybody."""

    def check_reader(self, certificate: Mapping[str, Any] | None, peer: str) -> None:
        """Check who a client is by its certificate. Raises `PeerRefused`."""


class HttpServer:
    """Serves `app` while the context is open; `port` is then the bound one. Raises SettingsError when it is taken.

    A handler is cancelled the moment its client goes away, also while it has nothing to write.
    """

    def __init__(self, app: web.Application, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Without `tls` everything is in plain text."""
        self.host = host
        self.port = port
        self._tls = tls
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=_CANCEL_LIMIT_S, keepalive_timeout=75.0
        )

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self.host, self.port, backlog=1024, ssl_context=self._tls).start()
        except OSError as error:
            await self._runner.cleanup()
            reason = "is already in use" if error.errno == errno.EADDRINUSE else f"cannot be bound: {error.strerror}"
            raise SettingsError(f"PRFAAS_HTTP_HOST, PRFAAS_HTTP_PORT: {self.host}:{self.port} {reason}") from error
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._runner.cleanup()


class StatusServer(HttpServer):
    """The status routes on a port of their own, for a service that speaks gRPC otherwise."""

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        health: Health,
        tls: ssl.SSLContext | None = None,
        guard: ReaderGuard | None = None,
    ) -> None:
        app = web.Application()
        app.add_routes(status_routes(registry, health, guard))
        super().__init__(app, host, port, tls)


def status_routes(registry: CollectorRegistry, health: Health, guard: ReaderGuard | None = None) -> list[web.RouteDef]:
    """Return the routes alone, for a service that has an aiohttp application of its own.

    A `guard` is asked for metrics only: probes of an orchestrator, which ask for health, have no certificates.
    """

    async def metrics(request: web.Request) -> web.Response:
        if guard is not None:
            try:
                guard.check_reader(request.get_extra_info("peercert"), request.remote or "")
            except PeerRefused as error:
                return web.Response(status=403, text=f"no metrics without a certificate of this suite: {error}\n")
        # Whatever is accepted: as OpenMetrics the library turns the colon of names into an underscore, and a server of
        # Prometheus 2 asks for that first.
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def livez(_request: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def readyz(_request: web.Request) -> web.Response:
        conditions = {
            name: {"ok": c.ok, "required": c.required, "detail": c.detail} for name, c in health.conditions.items()
        }
        body = {"ready": health.ready, "draining": health.draining, "conditions": conditions}
        return web.json_response(body, status=200 if health.ready else 503)

    return [web.get("/metrics", metrics), web.get("/livez", livez), web.get("/readyz", readyz)]
