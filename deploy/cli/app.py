"""The commands of `prfaas`, and the one place where a failure becomes a line and an exit code."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from deploy.cli.certs.command import certs
from deploy.cli.chat import chat
from deploy.cli.doctor.command import doctor
from deploy.cli.failure import CommandFailed
from deploy.cli.key import key
from deploy.cli.plan import plan
from deploy.cli.status import status
from deploy.cli.trace import trace
from deploy.cli.up import up
from deploy.cli.version import installed_version


class ToldFailures(TyperGroup):
    """A group whose commands may raise `CommandFailed`."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CommandFailed as failure:
            typer.echo(f"prfaas: {failure}", err=True)
            raise typer.Exit(failure.exit_code) from None


app = typer.Typer(
    cls=ToldFailures,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback is for whoever reports it, not to be drawn
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(up)
app.command()(status)
app.command()(chat)
app.command()(trace)
app.command()(plan)
app.command()(key)
app.command()(doctor)
app.add_typer(certs, name="certs")


def show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"prfaas {installed_version()}")
        raise typer.Exit


@app.callback()
def prfaas(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=show_version, help="Print the version.")
    ] = False,
) -> None:
    """Start, watch, ask and examine a PrfaaS suite."""
