"""`python -m services.gateway.plan FILE.toml`: how two clusters should be divided, and what they then sustain.

`examples/plans` has files to begin with; docs/routing/planner.md tells what they may say. Exit status 2: the file or
the command is wrong.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from services.gateway.plan.answers import PlannerAnswer, capacity_answer, egress_answer
from services.gateway.plan.inputs import FileBuilder
from services.gateway.plan.plot import save_plot
from services.gateway.plan.reading import read
from services.gateway.plan.schema import EgressFile
from shared.errors import SettingsError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m services.gateway.plan", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("file", type=Path, metavar="FILE.toml")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw Lambda over t and N_p (needs matplotlib)")
    asked = parser.parse_args(arguments)
    try:
        answer = answer_of(asked.file, asked.plot)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(answer.to_json(), indent=2) if asked.json else "\n".join(answer.lines()))
    return 0


def answer_of(path: Path, plot: Path | None = None) -> PlannerAnswer:
    """Read a file, plan, and draw if asked to. Raises `SettingsError`."""
    file, builder = read(path), FileBuilder(path)
    if isinstance(file, EgressFile):
        if plot is not None:
            raise SettingsError(f"{path}: kind: only files of the kind capacity can be plotted")
        return egress_answer(file, builder)
    answer = capacity_answer(file, builder)
    if plot is not None:
        save_plot(answer.surface, answer.ours, file.title, plot)
    return answer


if __name__ == "__main__":
    sys.exit(main())
