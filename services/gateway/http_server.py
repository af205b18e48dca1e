"""The gateway's own HTTP server: binds, serves, and ends without cutting off answers that still run."""

import errno
from typing import Self

from aiohttp import web

from shared.errors import SettingsError

_CANCEL_LIMIT_S = 1.0


class HttpServer:
    """Serves `app` while the context is open; `port` is then the bound one. Raises SettingsError when it is taken.

    A handler is cancelled the moment its client goes away, also while it has nothing to write.
    """

    def __init__(self, app: web.Application, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=_CANCEL_LIMIT_S, keepalive_timeout=75.0
        )

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self.host, self.port, backlog=1024).start()
        except OSError as error:
            await self._runner.cleanup()
            reason = "is already in use" if error.errno == errno.EADDRINUSE else f"cannot be bound: {error.strerror}"
            raise SettingsError(f"PRFAAS_HTTP_HOST, PRFAAS_HTTP_PORT: {self.host}:{self.port} {reason}") from error
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._runner.cleanup()
