"""A cluster and its requests as tables of a terminal."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.cli.cluster import ClusterNow

Json = dict[str, Any]

UNKNOWN = "-"
STYLES = {"ready": "green", "suspect": "yellow", "gone": "red"}


def shown(cluster: ClusterNow) -> RenderableType:
    """Return everything, one part below the other."""
    return Group(*_parts(cluster))


def table_of(title: str, columns: Sequence[str]) -> Table:
    """Return a table whose columns of figures, those behind a colon, are flush right."""
    table = Table(title=title, title_justify="left", title_style="bold", expand=False)
    for column in columns:
        table.add_column(column.removeprefix(":"), justify="right" if column.startswith(":") else "left")
    return table


def told(value: float | None, form: str = "{:.0f}") -> str:
    """Return a figure as text; a dash where there is none."""
    return UNKNOWN if value is None else form.format(value)


def _parts(cluster: ClusterNow) -> Iterator[RenderableType]:
    live, requests = cluster.live, cluster.live["requests"]
    yield Text.assemble(
        ("serving", "green") if cluster.is_serving else ("not serving", "red bold"),
        f"  {live['model']} at {cluster.gateway}, version {cluster.version}; "
        f"{requests['num_running']} requests running, {requests['num_taken']} taken",
    )
    yield from (Text(reason, style="red") for reason in cluster.reasons)
    processes = [*live["workers"], *live["pools"]]
    yield from (Text(f"{one['id']}: {one['reason']}", style="yellow") for one in processes if one["reason"])
    yield _workers(live["workers"])
    yield _pools(live["pools"])
    if live["links"]:
        yield _links(live["links"])


def _workers(workers: Sequence[Json]) -> Table:
    columns = ("worker", "role", "dc", "state", ":running", ":waiting", ":queued", ":busy", ":KV used", ":tokens/s")
    table = table_of("Workers", columns)
    for worker in workers:
        table.add_row(
            worker["id"],
            worker["role"],
            worker["dc"],
            Text(worker["state"], style=STYLES[worker["state"]]),
            told(worker.get("running")),
            told(worker.get("waiting")),
            told(worker.get("queued_s"), "{:.2f} s"),
            told(worker.get("busy"), "{:.0%}"),
            told(worker["kv_usage"], "{:.0%}"),
            told(worker.get("tokens_per_s")),
        )
    return table


def _pools(pools: Sequence[Json]) -> Table:
    table = table_of("Pools", ("pool", "dc", "state", ":memory used", ":of", ":suspects", ":silent"))
    for pool in pools:
        table.add_row(
            pool["id"],
            pool["dc"],
            Text(pool["state"], style=STYLES[pool["state"]]),
            told(pool["kv_usage"], "{:.0%}"),
            UNKNOWN if pool["bytes"] is None else f"{pool['bytes'] / (1 << 30):.1f} GiB",
            told(pool["num_suspects"]),
            told(pool["silent_s"], "{:.1f} s"),
        )
    return table


def _links(links: Sequence[Json]) -> Table:
    table = table_of("Links", ("from", "to", ":goodput", ":backlog", ":crossed", ":round trip"))
    for link in links:
        goodput, round_trip_s = link["goodput_bytes_per_s"], link["round_trip_s"]
        table.add_row(
            link["from"],
            link["to"],
            UNKNOWN if goodput is None else f"{goodput / 1e6:.1f} MB/s",
            f"{link['backlog_bytes'] / 1e6:.1f} MB",
            f"{link['crossed_bytes'] / 1e6:.1f} MB",
            UNKNOWN if round_trip_s is None else f"{round_trip_s * 1000:.1f} ms",
        )
    return table
