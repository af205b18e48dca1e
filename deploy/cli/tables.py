"""A cluster as tables of a terminal."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.cli.cluster import ClusterNow, LinkNow, PoolNow, WorkersNow

UNKNOWN = "-"
SILENT_S = 5.0
"""Pools say something every two seconds."""


def shown(cluster: ClusterNow) -> RenderableType:
    """Return everything, one part below the other."""
    return Group(*_parts(cluster))


def _parts(cluster: ClusterNow) -> Iterator[RenderableType]:
    state = ("serving", "green") if cluster.is_serving else ("not serving", "red bold")
    yield Text.assemble(
        state,
        f"  {cluster.model} at {cluster.gateway}, version {cluster.version}; "
        f"{cluster.running:.0f} requests running, {cluster.waiting:.0f} waiting",
    )
    yield from (Text(reason, style="red") for reason in cluster.reasons)
    yield from (Text(problem, style="yellow") for problem in cluster.problems)
    yield _workers(cluster.workers)
    yield _pools(cluster.pools)
    if cluster.links:
        yield _links(cluster.links)


def _table(title: str, *columns: str) -> Table:
    """Return a table whose columns of figures, those behind a colon, are flush right."""
    table = Table(title=title, title_justify="left", title_style="bold", expand=False)
    for column in columns:
        table.add_column(column.removeprefix(":"), justify="right" if column.startswith(":") else "left")
    return table


def _workers(groups: tuple[WorkersNow, ...]) -> Table:
    table = _table("Workers", "role", "dc", ":workers", ":requests", ":busy", ":queued", ":2,048 tokens take")
    for group in groups:
        table.add_row(
            group.role,
            group.dc,
            str(group.num_workers),
            f"{group.requests:.0f}",
            f"{group.busy:.0%}",
            f"{group.queued_s:.2f} s",
            UNKNOWN if group.prefill_2048_s is None else f"{group.prefill_2048_s:.2f} s",
        )
    return table


def _pools(pools: tuple[PoolNow, ...]) -> Table:
    table = _table("Pools", "pool", ":blocks", ":last heard of", "state")
    for pool in pools:
        is_silent = pool.silent_s is None or pool.silent_s > SILENT_S
        state = "not known yet" if pool.is_stale or pool.blocks is None else "silent" if is_silent else "known"
        table.add_row(
            pool.name,
            UNKNOWN if pool.blocks is None else f"{pool.blocks:.0f}",
            UNKNOWN if pool.silent_s is None else f"{pool.silent_s:.1f} s ago",
            Text(state, style="green" if state == "known" else "yellow"),
        )
    return table


def _links(links: tuple[LinkNow, ...]) -> Table:
    table = _table("Links", "from", "to", ":KV rate", ":used", ":backlog", ":round trip")
    for link in links:
        table.add_row(
            link.source,
            link.target,
            f"{link.bytes_per_s / 1e6:.0f} MB/s" + ("" if link.is_measured else " (assumed)"),
            f"{link.use:.0%}",
            f"{link.backlog_s:.2f} s",
            UNKNOWN if link.round_trip_s is None else f"{link.round_trip_s * 1000:.1f} ms",
        )
    return table
