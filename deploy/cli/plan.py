"""`prfaas plan`: the planner of `services.gateway.plan`."""

from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.failure import EXIT_FAILED, CommandFailed


def plan(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="As those in examples/plans.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw Lambda over t and N_p (needs matplotlib).")
    ] = None,
) -> None:
    """Divide two clusters: threshold, prefill and decode instances, requests per second."""
    try:
        from services.gateway.plan.__main__ import main
    except ModuleNotFoundError as error:
        raise CommandFailed(
            f"the package {error.name} is missing: pip install 'prfaas[gateway]'", EXIT_FAILED
        ) from error
    options = ["--json"] * as_json + (["--plot", str(plot)] if plot is not None else [])
    raise typer.Exit(main([*options, "--", str(file)]))
