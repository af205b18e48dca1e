"""What gRPC channels need of certificates: credentials, the names of servers, and an answer to why one hangs up."""

import ssl
from collections.abc import Callable

import grpc

from shared.security.identity import server_name
from shared.security.probe import why_refused
from shared.security.refusals import Refusals
from shared.security.rights import SERVERS


class ChannelTls:
    """The client's side of gRPC connections."""

    def __init__(
        self,
        credentials: Callable[[], grpc.ChannelCredentials],
        context: ssl.SSLContext,
        refusals: Refusals,
        describe: Callable[[], str],
    ) -> None:
        """`credentials` returns the same object until certificates change; `context` is for probes.

        `describe` says what a server is shown.
        """
        self.credentials = credentials
        self._context = context
        self._refusals = refusals
        self._describe = describe

    def name_for(self, service: str, dc: str) -> str:
        """Return the name that the server of a gRPC service must have. `dc` may be empty: any datacenter."""
        role = SERVERS.get(service)
        return server_name() if role is None else server_name(role, dc)

    async def explain(self, address: str, name: str) -> None:
        """Find out whether certificates are why a server cannot be called; count it and log it."""
        found = await why_refused(address, self._context, name)
        if found is not None:
            told = f"{found.reason}: {self._describe()}" if found.by == "peer" else found.reason
            self._refusals.note("grpc", found.by, told, address)
