"""A cluster as its gateway sees it at one moment: `GET /v1/live`, with what `GET /health` says of it."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from deploy.cli.failure import CommandFailed
from deploy.cli.gateway import UNAVAILABLE, GatewayClient

Json = dict[str, Any]


@dataclass(frozen=True)
class ClusterNow:
    """All that `prfaas status` shows. `live` is an event of `GET /v1/live`."""

    gateway: str
    version: str
    reasons: tuple[str, ...]  # why nothing is served; empty: it is
    live: Json

    @property
    def is_serving(self) -> bool:
        return not self.reasons

    def to_json(self) -> Json:
        told = {"gateway": self.gateway, "version": self.version, "is_serving": self.is_serving}
        return {**told, "reasons": list(self.reasons), **self.live}


def cluster_now(client: GatewayClient) -> ClusterNow:
    """Return the present moment. Raises `CommandFailed`, also when something else answers at the URL."""
    with closing(client.events("/v1/live")) as events:
        return next(_moments(client, events), None) or _nothing(client)


def _moments(client: GatewayClient, events: Iterator[str]) -> Iterator[ClusterNow]:
    try:
        version = str(client.json("/version")["version"])
        for data in events:
            reasons = tuple(map(str, client.json("/health", also=UNAVAILABLE)["reasons"]))
            yield ClusterNow(client.url, version, reasons, json.loads(data))
    except (LookupError, TypeError, ValueError) as error:
        raise CommandFailed(f"{client.url} answers, but not as this version's gateway: {error!r}") from error


def _nothing(client: GatewayClient) -> ClusterNow:
    raise CommandFailed(f"{client.url} is shutting down: it tells no state any more")
