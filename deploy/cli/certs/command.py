"""The commands of `prfaas certs`."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deploy.cli.certs.folder import AUTHORITY, CertificateFolder, FolderEntry
from deploy.cli.failure import EXIT_FAILED, EXIT_USAGE, CommandFailed
from deploy.up.trust import CERTS
from shared.security.identity import Identity, ServiceRole

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
AUTHORITY_DAYS, MEMBER_DAYS = 3650, 90

WIDTH = 110
"""Columns of a table that nobody looks at in a terminal."""

Folder = Annotated[Path, typer.Option(envvar="PRFAAS_CERTS", help="The folder of the certificates.")]
Days = Annotated[int, typer.Option(min=1, max=3650, help="Days until the certificates expire.")]
Hosts = Annotated[
    list[str] | None,
    typer.Option("--host", help="A name or address by which HTTP clients reach it, beside localhost; may be repeated."),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

certs = typer.Typer(no_args_is_help=True, help="Make and look at the certificates of a suite that speaks mTLS.")


@certs.command()
def init(
    folder: Folder = CERTS,
    days: Annotated[int, typer.Option(min=1, max=36500, help="Days until the authority expires.")] = AUTHORITY_DAYS,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Make an authority: ca.pem for every machine, ca.key for none that serves."""
    made = CertificateFolder(folder)
    tell(made, [made.init(days, is_forced=force)], as_json=as_json)


@certs.command()
def issue(
    role: ServiceRole,
    dc: Annotated[str, typer.Argument(help="The datacenter: PRFAAS_DC of the process.")],
    folder: Folder = CERTS,
    hosts: Hosts = None,
    days: Days = MEMBER_DAYS,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Make the certificate and the key of a role in a datacenter."""
    made = CertificateFolder(folder)
    tell(made, [made.issue(member(role, dc), [*LOCAL_HOSTS, *(hosts or ())], days, is_forced=force)], as_json=as_json)


@certs.command()
def suite(
    dcs: Annotated[list[str], typer.Option("--dc", help="A datacenter; may be repeated.")] = ["east", "west"],  # noqa: B006 - typer copies it
    folder: Folder = CERTS,
    hosts: Hosts = None,
    days: Days = MEMBER_DAYS,
    as_json: AsJson = False,
) -> None:
    """Make what is absent: an authority, and a certificate for each role in each datacenter."""
    tell(made := CertificateFolder(folder), make_absent(made, dcs, hosts or (), days), as_json=as_json)


@certs.command()
def renew(
    folder: Folder = CERTS,
    within_days: Annotated[int, typer.Option(min=0, help="Renew those that expire within so many days.")] = 30,
    days: Days = MEMBER_DAYS,
    as_json: AsJson = False,
) -> None:
    """Make new keys and certificates in place of those that expire soon. Services take them without a restart."""
    made = CertificateFolder(folder)
    limit = datetime.now(UTC) + timedelta(days=within_days)
    ending = [entry.shown for entry in made.entries() if entry.shown is not None and entry.shown.not_after < limit]
    renewed = [
        made.issue(old.identity, list(old.hosts), days, is_forced=True) for old in ending if old.identity is not None
    ]
    tell(made, renewed, as_json=as_json)


@certs.command()
def show(folder: Folder = CERTS, as_json: AsJson = False) -> None:
    """Show whose the certificates are and when they expire. Ends with 1 if one is of no use."""
    entries = list(CertificateFolder(folder).entries())
    if not entries:
        raise CommandFailed(f"{folder} holds no certificates; `prfaas certs suite` makes them")
    write(entries, as_json=as_json)
    if any(entry.problem for entry in entries):
        raise typer.Exit(EXIT_FAILED)


def make_absent(made: CertificateFolder, dcs: list[str], hosts: list[str] | tuple[str, ...], days: int) -> list[str]:
    """Make what of a suite is absent and return the names. Raises `CommandFailed`."""
    names = [] if made.has_authority else [made.init(AUTHORITY_DAYS, is_forced=False)]
    absent = [owner for dc in dcs for role in ServiceRole if not made.has(owner := member(role, dc))]
    return names + [made.issue(owner, [*LOCAL_HOSTS, *hosts], days, is_forced=False) for owner in absent]


def member(role: ServiceRole, dc: str) -> Identity:
    """Return an identity. Raises `CommandFailed` when a datacenter has a name that cannot be in a certificate."""
    try:
        return Identity(role, dc)
    except ValueError as error:
        raise CommandFailed(str(error), EXIT_USAGE) from None


def tell(folder: CertificateFolder, names: list[str], *, as_json: bool) -> None:
    """Print what was made."""
    made = [entry for entry in folder.entries() if entry.name in names]
    write(made, as_json=as_json)
    if not as_json:
        typer.echo(f"{len(made)} made in {folder.path}" if made else "nothing to do")


def write(entries: list[FolderEntry], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([to_json(entry) for entry in entries], indent=2))
        return
    if not entries:
        return
    table = Table(box=None)
    for column in ("file", "identity", "expires (UTC)", "state"):
        table.add_column(column, no_wrap=True)
    for entry in entries:
        row = to_json(entry)
        table.add_row(f"{entry.name}.pem", row["identity"], row["expires"], row["state"])
    console = Console(highlight=False)
    console.print(table, width=max(console.width, WIDTH))


def to_json(entry: FolderEntry) -> dict[str, Any]:
    state = entry.problem or ("ok" if entry.is_key_private else "others may read the key")
    if entry.shown is None:
        return {"name": entry.name, "identity": "", "hosts": [], "expires": "", "state": state}
    owner = entry.shown.identity
    return {
        "name": entry.name,
        "identity": owner.uri if owner is not None else "authority" if entry.name == AUTHORITY else "an authority",
        "hosts": list(entry.shown.hosts),
        "expires": f"{entry.shown.not_after:%Y-%m-%d %H:%M:%S}",
        "state": state,
    }
