"""How long decode waits for blocks before it computes them itself. Pure.

To wait or to compute is the choice between renting and buying skis: who computes after having waited for as long as
computing takes is done within twice the time of somebody who knew from the start what would come (Karlin, Manasse,
Rudolph and Sleator, Competitive snoopy caching, 1988).
"""

import math

from services.gateway.routing.plan import Plan

LATE_FACTOR = 2.0
"""A hand-over is late after that many times its forecast: forecasts of loaded workers err by less."""

GRACE_S = 0.1
"""Above that, whatever the forecast: a busy host delays any request by tens of milliseconds."""


def patience_s(plan: Plan) -> float | None:
    """Return how long decode waits for the blocks of a plan; None: for as long as somebody writes them.

    As long as decode alone would take, or `LATE_FACTOR` times the forecast where that is more. Who waits in vain has a
    first token within `GRACE_S` and twice, at worst three times, what decode alone takes. A hand-over whose forecast is
    longer than that is planned only for the sake of others: then it is late by as much as decode alone would take.
    """
    comes_from_elsewhere = plan.prefill is not None or bool(plan.decode_sources)
    if not comes_from_elsewhere or math.isinf(plan.alone_s):
        return None
    forecast_s = plan.forecast.ttft_s
    return GRACE_S + max(plan.alone_s, min(LATE_FACTOR * forecast_s, forecast_s + plan.alone_s))
