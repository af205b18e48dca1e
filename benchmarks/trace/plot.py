"""The curves of a replay: hits and time saved against capacity."""

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.harness import Report


def save_plot(report: Report, path: Path) -> None:
    """Draw hit ratio and time saved of one datacenter with dense KV, one line for each policy."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    rows = [row for row in report.rows if row["kv"] == "dense" and row["datacenters"] == "one"]
    for axes, column in zip(figure.subplots(1, 2), ("hit_%", "time_saved_%"), strict=True):
        for policy, style in (("lru", "o--"), ("ours", "o-")):
            points = [row for row in rows if row["policy"] == policy and row["capacity_blocks"] is not None]
            axes.plot([row["capacity_blocks"] for row in points], [row[column] for row in points], style, label=policy)
        for row in rows:
            if row["capacity_blocks"] is None:
                axes.axhline(row[column], color="grey", linewidth=0.8, label="unlimited")
        axes.set_xscale("log")
        axes.set_xlabel("capacity, blocks of 512 tokens")
        axes.set_ylabel("blocks that hit, %" if column == "hit_%" else "time to compute prompts saved, %")
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
