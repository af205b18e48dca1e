"""`prfaas status`: what the gateway knows of its workers, pools and links, once or again and again."""

import json
import time
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from deploy.cli.cluster import ClusterNow, cluster_now
from deploy.cli.failure import EXIT_FAILED, CommandFailed
from deploy.cli.gateway import DEFAULT_GATEWAY, GatewayClient, GatewayUrl
from deploy.cli.tables import shown

TIMEOUT_S = 5.0


def status(
    gateway: GatewayUrl = DEFAULT_GATEWAY,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again and again, until Ctrl-C.")] = False,
    every_s: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks of --watch.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; with --watch an object a line.")] = False,
) -> None:
    """Show workers, pools, links and load as the gateway sees them. Ends with 1 if nothing can be served."""
    client = GatewayClient(gateway, TIMEOUT_S)
    if watch:
        try:
            follow(client, every_s, as_json=as_json)
        except KeyboardInterrupt:
            return
    cluster = cluster_now(client)
    if as_json:
        typer.echo(json.dumps(cluster.to_json(), indent=2, ensure_ascii=False))
    else:
        Console(highlight=False).print(shown(cluster))
    if not cluster.is_serving:
        raise typer.Exit(EXIT_FAILED)


def follow(client: GatewayClient, every_s: float, *, as_json: bool) -> None:
    """Show the cluster until Ctrl-C. A gateway that does not answer is waited for."""
    if as_json:
        while True:
            told = looked(client)
            line = {"error": str(told)} if isinstance(told, CommandFailed) else told.to_json()
            typer.echo(json.dumps(line, ensure_ascii=False))
            time.sleep(every_s)
    last: RenderableType = Text("")
    with Live(console=Console(highlight=False), auto_refresh=False, screen=False) as live:
        while True:
            told = looked(client)
            if isinstance(told, CommandFailed):
                live.update(Group(Text(f"{told}; last seen:", style="red bold"), last), refresh=True)
            else:
                last = shown(told)
                live.update(last, refresh=True)
            time.sleep(every_s)


def looked(client: GatewayClient) -> ClusterNow | CommandFailed:
    try:
        return cluster_now(client)
    except CommandFailed as failure:
        return failure
