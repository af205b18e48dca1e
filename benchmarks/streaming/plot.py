"""One plot: time to the first token against the speed of the link, both in units of prefill."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Point(NamedTuple):
    """All in units of what prefill takes alone."""

    transfer: float
    ttft: float
    bound: float  # max(prefill, transfer) and a round trip
    stored: float | None = None  # TTFT of store and forward, where it was measured


def draw(points: Sequence[Point], path: Path) -> None:
    """Write a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    furthest = max(2.0, *(point.transfer for point in points))
    axes.plot([0, 1, furthest], [1, 1, furthest], color="0.6", label="max(prefill, transfer)")
    axes.plot([0, furthest], [1, 1 + furthest], color="0.6", linestyle="--", label="prefill + transfer")
    axes.plot([p.transfer for p in points], [p.ttft for p in points], "o-", color="C0", label="streamed, measured")
    stored = [(p.transfer, p.stored) for p in points if p.stored is not None]
    axes.plot([x for x, _ in stored], [y for _, y in stored], "s", color="C3", label="store and forward, measured")
    axes.set_xlabel("transfer time / prefill time")
    axes.set_ylabel("time to first token / prefill time")
    axes.set_xlim(0, None)
    axes.set_ylim(0, None)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
