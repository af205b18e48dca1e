"""A request as the gate sees it: what it asks for, where it waits, when its rows will be in a batch. Pure."""

from typing import NamedTuple

from services.gateway.admission.rows import BatchRow
from services.gateway.routing.plan import NO_SLO, Forecast, Plan, Slo
from shared.ids import WorkerId
from shared.tenant import Tenant


class TurnRequest(NamedTuple):
    """What a request asks of the gate."""

    tenant: Tenant
    priority: int = 0  # lower goes first, within the tenant
    slo: Slo = NO_SLO
    output_tokens: int = 1  # that the answer may have


class Place(NamedTuple):
    """Where a request waits: before the worker that has most of its prompt to compute."""

    worker: WorkerId
    cost_s: float  # of the prompt, on all workers


def place_of(plan: Plan) -> Place:
    """Return the place of a planned request."""
    forecast = plan.forecast
    if plan.prefill is not None and forecast.prefill_s > forecast.decode_s:
        return Place(plan.prefill.worker, forecast.work_s)
    return Place(plan.decode.worker, forecast.work_s)


def row_of(forecast: Forecast, output_tokens: int, now: float) -> BatchRow:
    """Return when a request that is sent now will be in decode's batch."""
    joins_at = now + forecast.ttft_s
    return BatchRow(joins_at, joins_at + output_tokens * forecast.time_per_output_token_s)
