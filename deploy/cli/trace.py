"""`prfaas trace`: the latest requests, or what one of them went through."""

import json
from typing import Annotated
from urllib.parse import quote

import typer
from rich.console import Console

from deploy.cli.failure import CommandFailed
from deploy.cli.gateway import DEFAULT_GATEWAY, GatewayClient, GatewayUrl
from deploy.cli.waterfall import requests_table, waterfall

PREFIXES = ("chatcmpl-", "cmpl-")


def trace(
    request_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="Of an answer, or of its header X-Request-Id.")
    ] = None,
    gateway: GatewayUrl = DEFAULT_GATEWAY,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Requests that are listed without ID.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print what the gateway tells.")] = False,
) -> None:
    """Show the phases of a request; without ID list the latest requests."""
    client = GatewayClient(gateway)
    path = f"/v1/requests?limit={limit}" if request_id is None else f"/v1/requests/{quote(bare(request_id))}/timeline"
    answer = client.json(path)
    if as_json:
        typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    try:
        drawn = requests_table(answer["data"]) if request_id is None else waterfall(answer)
    except (LookupError, TypeError) as error:
        raise CommandFailed(f"{client.url} answers, but not as this version's gateway: {error!r}") from error
    Console(highlight=False).print(drawn)


def bare(request_id: str) -> str:
    """Return the id of the request of an answer's id."""
    for prefix in PREFIXES:
        request_id = request_id.removeprefix(prefix)
    return request_id
