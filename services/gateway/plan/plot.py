"""Lambda over t and N_p as a picture."""

from pathlib import Path

from services.gateway.routing.planning.deployments import Deployments
from services.gateway.routing.planning.search import RateSurface
from shared.errors import SettingsError


def save_plot(surface: RateSurface, ours: Deployments, title: str, path: Path) -> None:
    """Draw a line for each N_p at the plan's N_prfaas, the plan, and the deployments that it is compared with.

    Raises `SettingsError` where matplotlib is not installed or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure  # of the extra `bench`: tables need no plots
    except ImportError:
        raise SettingsError("--plot needs matplotlib: install the extra `bench`") from None
    plan = ours.prfaas_pd
    chosen = surface.requests_per_s[surface.prfaas_instances.index(plan.prfaas_instances)]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for num_prefill, rates in zip(surface.prefill_instances, chosen, strict=True):
        if num_prefill < surface.pd_instances:
            is_plan = num_prefill == plan.prefill_instances
            label = f"{num_prefill} / {surface.pd_instances - num_prefill}"
            axes.plot(surface.thresholds, rates, linewidth=2.5 if is_plan else 1.0, label=label)
    for other, name, style in ((ours.homogeneous_pd, "homogeneous", "--"), (ours.naive_heterogeneous, "naive", ":")):
        axes.axhline(other.requests_per_s, color="grey", linestyle=style, linewidth=1.0, label=name)
    axes.plot([plan.threshold_tokens or surface.thresholds[-1]], [plan.requests_per_s], "ko")
    axes.set(title=title, xlabel="threshold t, tokens", ylabel=f"Lambda, requests/s, by {plan.averaging}")
    axes.set_xscale("symlog", linthresh=1024)
    axes.set_xticks([0, 1024, 4096, 16384, 65536], ["0", "1K", "4K", "16K", "64K"])
    figure.legend(title="N_p / N_d", loc="outside right center")
    try:
        figure.savefig(path, dpi=100)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: cannot be written: {error}") from None
