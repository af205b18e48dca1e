"""The door of each server: reads who a peer is from its certificate, and looks up its rights."""

from collections.abc import Iterable, Mapping
from typing import Any

from shared.errors import PeerRefused
from shared.security.identity import Identity, identity_of_certificate, identity_of_uris
from shared.security.refusals import Kind, Refusals
from shared.security.rights import CALLS, LANE, check_right

_URIS = "peer_uri"  # gRPC's name for the URIs of the peer's certificate


class PeerGuard:
    """Checks who calls this process. Every refusal is counted, logged, and raised as `PeerRefused`."""

    def __init__(self, own: Identity, refusals: Refusals) -> None:
        self._own = own
        self._refusals = refusals

    def check_call(self, method: str, peer: str, context: Mapping[str, Iterable[bytes]]) -> None:
        """Check a gRPC call by its connection's authentication context."""
        try:
            caller = identity_of_uris([uri.decode("utf-8", "replace") for uri in context.get(_URIS, ())])
            check_right(caller, self._own, CALLS.get(method, {}), f"call {method}")
        except PeerRefused as error:
            raise self._noted("grpc", error, peer) from None

    def check_lane(self, certificate: Mapping[str, Any] | None, peer: str) -> None:
        """Check who opens a connection of a link."""
        try:
            check_right(identity_of_certificate(certificate), self._own, LANE, "open a link")
        except PeerRefused as error:
            raise self._noted("lane", error, peer) from None

    def check_reader(self, certificate: Mapping[str, Any] | None, peer: str) -> None:
        """Check who reads metrics: anybody of the suite may, and operators."""
        try:
            identity_of_certificate(certificate)
        except PeerRefused as error:
            raise self._noted("http", error, peer) from None

    def _noted(self, kind: Kind, error: PeerRefused, peer: str) -> PeerRefused:
        self._refusals.note(kind, "us", str(error), peer)
        return error
