"""An engine's step profile as metrics."""

from collections.abc import Callable

from shared.engine.costs.steps import StepCosts
from shared.metrics import Metrics

PARTS = {"base": "base_s", "token": "token_s", "pair": "pair_s", "row": "row_s", "context": "context_s"}
"""Labels, and the fields of `StepProfile` behind them."""


def export_costs(metrics: Metrics, costs: StepCosts, queued_s: Callable[[], float]) -> None:
    """Show what steps are held to take, and what that says of the prompts that are here."""
    seconds = metrics.gauge("step_profile_seconds", "Time that the engine expects of a part of a step", ("part",))
    for part, field in PARTS.items():
        seconds.labels(part).set_function(_reader(costs, field))
    steps = metrics.gauge("step_profile_steps", "Measured steps that this rests on, older ones counted less")
    steps.set_function(lambda: costs.fit.num_observations)
    error = metrics.gauge("step_profile_error", "Error that steps usually have against that, as a share")
    error.set_function(lambda: costs.fit.typical_error)
    busy = metrics.gauge("step_busy", "Share of the last seconds spent in steps, 0 to 1")
    busy.set_function(lambda: costs.busy)
    queued = metrics.gauge("queued_seconds", "Time that the engine expects of all prompts here")
    queued.set_function(queued_s)


def _reader(costs: StepCosts, field: str) -> Callable[[], float]:
    return lambda: float(getattr(costs.profile, field))
