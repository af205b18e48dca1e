"""One plot: each request's time to the first token, by the side that it was planned for, while the link changes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.congestion.judging import Phases, ServedRequests

COLOURS = {"remote": "C0", "local": "C2", "decode_only": "C1", "none": "C1"}
LABELS = {"remote": "over the link", "local": "prefill at home", "decode_only": "decode alone", "none": "cached"}


def draw(runs: Mapping[str, tuple[Phases, Sequence[ServedRequests]]], path: Path) -> None:
    """Write a PNG with a panel for each run."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(len(runs), figsize=(7.5, 2.8 * len(runs)), squeeze=False, layout="constrained")
    for (name, (phases, served)), axes in zip(runs.items(), panels[:, 0], strict=True):
        axes.axvspan(phases.slow_s, phases.back_s, color="0.9", label="link at a tenth")
        for kind in dict.fromkeys(one.kind for one in served):
            chosen = [one for one in served if one.kind == kind]
            axes.plot(
                [one.at_s for one in chosen],
                [one.ttft_s for one in chosen],
                ".",
                color=COLOURS[kind],
                label=LABELS[kind],
            )
        rescued = [one for one in served if one.is_rescued]
        axes.plot(
            [one.at_s for one in rescued], [one.ttft_s for one in rescued], "o", mfc="none", color="C3", label="rescued"
        )
        axes.plot([one.at_s for one in served], [one.forecast_s for one in served], "-", color="0.5", lw=0.6)
        axes.set_title(name, fontsize=9)
        axes.set_ylabel("time to first token, s")
        axes.set_ylim(0, None)
        axes.legend(frameon=False, fontsize=7, ncols=4)
    panels[-1, 0].set_xlabel("seconds")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
