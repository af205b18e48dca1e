"""`prfaas key`: a new API key, and what the file of keys gets of it."""

import json
import secrets
from typing import Annotated

import typer

from deploy.cli.failure import EXIT_FAILED, CommandFailed


def key(
    tenant: Annotated[str, typer.Argument(help="Whose key it is to be.")],
    with_secret: Annotated[
        bool, typer.Option("--new-file", help="Print a new file, with a new secret of all salts.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make an API key. Nothing is written, and the key is shown only now."""
    try:
        from services.gateway.tenants.file import digest_of, new_key
    except ModuleNotFoundError as error:
        raise CommandFailed(
            f"the package {error.name} is missing: pip install 'prfaas[gateway]'", EXIT_FAILED
        ) from error
    made = new_key()
    found = {"tenant": tenant, "key": made, "digest": digest_of(made)}
    if with_secret:
        found["secret"] = secrets.token_hex(32)
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(f"# the key of {tenant}, shown only now: {made}", err=True)
    if with_secret:
        typer.echo(f'secret = "{found["secret"]}"\n')
    name = json.dumps(tenant)  # a TOML string is written as one of JSON
    typer.echo(f'[tenants.{name}]\nkeys = ["{found["digest"]}"]')
