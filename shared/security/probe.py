"""Asks why a peer hangs up: gRPC tells a client that was refused only that the socket was closed."""

import asyncio
import ssl
from typing import NamedTuple

from shared.security.refusals import By
from shared.security.sessions import is_alert, reason_of

_FIRST_BYTE_S = 1.0
"""How long after the handshake a server of gRPC may take to say anything."""


class ProbedRefusal(NamedTuple):
    """Who does not accept whom."""

    by: By
    reason: str


async def why_refused(address: str, context: ssl.SSLContext, name: str, timeout_s: float = 3.0) -> ProbedRefusal | None:
    """Return why `host:port` cannot be called; None when certificates are not why, or when nobody answers at all.

    In TLS 1.3 the client's handshake is over before the server has looked at its certificate. A server of gRPC that
    does not accept it hangs up without an alert; one that does speaks first.
    """
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(
                host.strip("[]"), int(port), ssl=context, server_hostname=name
            )
            try:
                async with asyncio.timeout(_FIRST_BYTE_S):
                    if not await reader.read(1):
                        return ProbedRefusal("peer", "it hangs up when it has seen our certificate")
            finally:
                writer.transport.abort()
    except ssl.SSLError as error:
        return ProbedRefusal("peer" if is_alert(error) else "us", reason_of(error))
    except (OSError, TimeoutError, ValueError):
        return None
    return None
