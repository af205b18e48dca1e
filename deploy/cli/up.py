"""`prfaas up`: the whole suite on this machine, after a look at what would keep it from starting."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.certs.command import MEMBER_DAYS, make_absent
from deploy.cli.certs.folder import CertificateFolder
from deploy.cli.doctor.checks import before_start
from deploy.cli.doctor.finding import Level
from deploy.cli.failure import EXIT_INTERRUPTED, CommandFailed
from deploy.cli.procfile import read_procfile
from deploy.up.environment import PROCFILE, ROOT, RUN, environment
from deploy.up.run import run_suite
from deploy.up.trust import CERTS, is_encrypted

PREPARE = (sys.executable, "-m", "shared.model.files.catalog", "--weights")


def up(
    port: Annotated[
        int | None, typer.Option(envvar="GATEWAY_PORT", min=1, max=65535, help="The gateway's port (default 8000).")
    ] = None,
    model: Annotated[
        str | None, typer.Option(envvar="PRFAAS_MODEL", help="A built-in model, a model directory or a GGUF file.")
    ] = None,
    procfile: Annotated[Path, typer.Option(help="The processes, a line each.")] = PROCFILE,
    logs: Annotated[Path, typer.Option(help="The folder for the processes' logs.")] = RUN / "logs",
    mtls: Annotated[
        bool, typer.Option("--mtls", help="Encrypt all connections, as PRFAAS_SECURITY=mtls; makes certificates.")
    ] = False,
    check: Annotated[bool, typer.Option(help="Look first at what would keep the suite from starting.")] = True,
) -> None:
    """Start the whole suite on this machine and keep it running. Ctrl-C stops it, a second Ctrl-C at once."""
    for name, value in (("GATEWAY_PORT", port), ("PRFAAS_MODEL", model)):
        if value is not None:
            os.environ[name] = str(value)
    commands = read_procfile(procfile)
    if mtls:
        os.environ["PRFAAS_SECURITY"] = "mtls"
    if is_encrypted(os.environ) and not os.environ.get("PRFAAS_CERTS"):
        make_certificates(commands)
    if check:
        refuse_what_cannot_start(commands)
    if any("services." in command for command in commands.values()):
        prepare_model()
    raise typer.Exit(run_suite(procfile, logs))


def make_certificates(commands: dict[str, str]) -> None:
    """Make what is absent of this machine's own certificates, and have the suite use them."""
    os.environ["PRFAAS_CERTS"] = str(CERTS)
    dcs = sorted({dc for command in commands.values() for dc in re.findall(r"\bPRFAAS_DC=(\S+)", command)})
    if made := make_absent(CertificateFolder(CERTS), dcs, (), MEMBER_DAYS):
        typer.echo(f"{len(made)} certificates made in {CERTS}")


def refuse_what_cannot_start(commands: dict[str, str]) -> None:
    """Raises `CommandFailed` with each thing that would end the suite at its start."""
    problems = [finding for finding in before_start(commands) if finding.level is Level.FAIL]
    if problems:
        lines = [f"  {finding.what}: {finding.why}\n    {finding.todo}" for finding in problems]
        raise CommandFailed("the suite cannot start:\n" + "\n".join(lines))


def prepare_model() -> None:
    """Convert the model once, before several processes want it. Raises `CommandFailed`."""
    try:
        done = subprocess.run(PREPARE, cwd=ROOT, env=environment(os.environ), check=False)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if done.returncode:
        raise CommandFailed("the model could not be prepared; the lines above say why")
