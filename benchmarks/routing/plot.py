"""Goodput of all policies in all cases, as bars with their intervals."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.routing.contestants import OURS
from benchmarks.routing.judging import Interval, Judged

COLUMNS = 4


def save_plot(cases: Sequence[Judged], path: Path) -> None:
    """Draw a panel for each case: the share of requests within their SLO, one bar for each policy."""
    num_rows = -(-len(cases) // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 3.6 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, COLUMNS, squeeze=False, sharey=True).ravel()
    for axes, case in zip(panels, cases, strict=False):
        names = [one.name for one in case.contestants]
        shares = [Interval.of([100 * value for value in one.values("good_share")]) for one in case.contestants]
        colours = ["tab:orange" if name == OURS else "tab:blue" for name in names]
        means, halves = [share.mean for share in shares], [min(share.half, 100.0) for share in shares]
        axes.barh(names, means, xerr=halves, color=colours, error_kw={"elinewidth": 0.8})
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_title(f"({case.letter}) {case.contestants[0].case.title}", fontsize=9)
        axes.set_xlabel("requests within their SLO, %")
    for axes in panels[len(cases) :]:
        axes.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
