"""The command `prfaas doctor`: a line a check, and what to do about those that are not well."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from deploy.cli.doctor.checks import everything
from deploy.cli.doctor.finding import Finding, Level
from deploy.cli.failure import EXIT_FAILED
from deploy.cli.gateway import DEFAULT_GATEWAY, GatewayClient, GatewayUrl
from deploy.cli.procfile import read_procfile
from deploy.cli.version import installed_version
from deploy.up.environment import PROCFILE
from deploy.up.trust import reached

STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red bold"}
WHAT_COLUMNS = 20


def doctor(
    gateway: GatewayUrl = DEFAULT_GATEWAY,
    procfile: Annotated[Path, typer.Option(help="The processes that `prfaas up` starts.")] = PROCFILE,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array of findings.")] = False,
) -> None:
    """Find the usual mistakes, and say what to do about each. Ends with 1 if a check failed.

    Looks at this machine and its PRFAAS_* variables, and at the gateway if one answers.
    """
    commands = read_procfile(procfile) if procfile != PROCFILE or procfile.exists() else {}
    findings = []
    console = Console(soft_wrap=True, highlight=False)
    for finding in everything(
        commands, GatewayClient(gateway), installed_version(), is_named=gateway != reached(DEFAULT_GATEWAY, os.environ)
    ):
        findings.append(finding)
        if not as_json:
            show(console, finding)
    if as_json:
        typer.echo(json.dumps([finding.to_json() for finding in findings], indent=2, ensure_ascii=False))
    if any(finding.level is Level.FAIL for finding in findings):
        raise typer.Exit(EXIT_FAILED)


def show(console: Console, finding: Finding) -> None:
    """Print a finding, and below it what to do."""
    console.print(
        Text.assemble(
            (f"{finding.level.value:<6}", STYLES[finding.level]), f"{finding.what:<{WHAT_COLUMNS}} ", finding.why
        )
    )
    if finding.todo:
        console.print(Text(f"      to do: {finding.todo}"))
