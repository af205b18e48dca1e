"""A cluster as its gateway sees it at one moment, put together from what the gateway serves."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from deploy.cli.failure import CommandFailed
from deploy.cli.gateway import UNAVAILABLE, GatewayClient

PREFIX = "prfaas:"


@dataclass(frozen=True)
class WorkersNow:
    """The workers of one role in one datacenter. None: nobody has measured it."""

    role: str
    dc: str
    num_workers: int
    requests: float  # running and waiting there
    busy: float  # share of the last seconds that prompts added to steps, 0 to 1
    queued_s: float  # what the prompts there still take, a mean
    prefill_2048_s: float | None  # time of a prompt of 2,048 tokens


@dataclass(frozen=True)
class PoolNow:
    """A pool node."""

    name: str
    blocks: float | None  # that it has told of; None: nothing yet
    silent_s: float | None  # since its last placement event
    is_stale: bool  # nothing is known of it, for want of a snapshot


@dataclass(frozen=True)
class LinkNow:
    """A link between datacenters, as KV crosses it."""

    source: str
    target: str
    bytes_per_s: float
    is_measured: bool  # else the rate is an assumption
    use: float  # share of the rate
    backlog_s: float
    round_trip_s: float | None


@dataclass(frozen=True)
class ClusterNow:
    """All that `prfaas status` shows."""

    gateway: str
    version: str
    model: str
    reasons: tuple[str, ...]  # why nothing is served; empty: it is
    problems: tuple[str, ...]  # why known workers are not used
    running: float  # requests at the gateway
    waiting: float  # for their turn
    names: Mapping[str, tuple[str, ...]]  # of usable workers and pools, by role
    workers: tuple[WorkersNow, ...]
    pools: tuple[PoolNow, ...]
    links: tuple[LinkNow, ...]

    @property
    def is_serving(self) -> bool:
        return not self.reasons

    def to_json(self) -> dict[str, Any]:
        return {"is_serving": self.is_serving, **asdict(self)}


def cluster_now(client: GatewayClient) -> ClusterNow:
    """Ask the gateway. Raises `CommandFailed`, also when something else answers at its URL."""
    try:
        health = client.json("/health", also=UNAVAILABLE)
        measured = client.json("/v1/plan")["measured"]
        samples = _samples(client.text("/metrics"))
        return ClusterNow(
            gateway=client.url,
            version=str(client.json("/version")["version"]),
            model=str(client.json("/v1/models")["data"][0]["id"]),
            reasons=tuple(health["reasons"]),
            problems=tuple(health["problems"]),
            running=sum(samples.get("num_requests_running", {}).values()),
            waiting=sum(samples.get("num_requests_waiting", {}).values()),
            names={role: tuple(sorted(names)) for role, names in health["workers"].items()},
            workers=tuple(map(_workers, measured["workers"])),
            pools=_pools(health["workers"]["cachepool"], samples),
            links=tuple(map(_link, measured["links"])),
        )
    except (LookupError, TypeError, ValueError) as error:
        raise CommandFailed(f"{client.url} answers, but not as this version's gateway: {error!r}") from error


def _samples(metrics: str) -> dict[str, dict[str, float]]:
    """Return the values of each metric by the label `holder`; those without it under the empty name, summed up."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            values = found.setdefault(sample.name.removeprefix(PREFIX), {})
            holder = sample.labels.get("holder", "")
            values[holder] = values.get(holder, 0.0) + sample.value
    return found


def _workers(group: Mapping[str, Any]) -> WorkersNow:
    is_measured = group["num_measured"] > 0
    return WorkersNow(
        role=group["role"],
        dc=group["dc"],
        num_workers=group["num_workers"],
        requests=group["requests"],
        busy=group["busy"],
        queued_s=group["queued_s"],
        prefill_2048_s=group["prefill_s"]["2048"] if is_measured else None,
    )


def _pools(usable: list[str], samples: Mapping[str, Mapping[str, float]]) -> tuple[PoolNow, ...]:
    blocks, silent, stale = (samples.get(f"placement_{name}", {}) for name in ("blocks", "silent_seconds", "stale"))
    names = sorted({*usable, *blocks, *silent, *stale} - {""})
    return tuple(PoolNow(name, blocks.get(name), silent.get(name), bool(stale.get(name, 0))) for name in names)


def _link(link: Mapping[str, Any]) -> LinkNow:
    return LinkNow(
        source=link["from"],
        target=link["to"],
        bytes_per_s=link["kv_bytes_per_s"],
        is_measured=link["is_measured"],
        use=link["use"],
        backlog_s=link["backlog_s"],
        round_trip_s=link["round_trip_s"],
    )
