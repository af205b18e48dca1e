"""What the controller believes beside what it measures, as JSON."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.gateway.cluster.view import RegistryView
from services.gateway.cluster.workers import Rows
from services.gateway.control.case import PlanningTerms
from services.gateway.control.hardware import best_known, is_measured
from services.gateway.control.observed import Observed
from services.gateway.control.replicas import replicas_of
from services.gateway.control.state import ControlState
from services.gateway.control.ways import WideWay
from services.gateway.routing.costs.steps import prefill_s

SHOWN_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
SHOWN_LENGTHS = (512, 2048, 8192, 32768)
"""Prompt lengths whose prefill time an answer tells."""

COEFFICIENTS = ("base_s", "token_s", "pair_s", "row_s", "context_s")


def answer_of(state: ControlState, terms: PlanningTerms, now: float) -> dict[str, Any]:
    """Return the answer of `GET /v1/plan`."""
    snapshot, evaluation = state.snapshot, state.evaluation
    current, best = (None if plan is None else plan.to_json() for plan in (evaluation.current, evaluation.best))
    return {
        "object": "plan",
        "home": terms.home,
        "age_s": round(now - state.evaluated_at, 3),
        "observed": _observed(snapshot.observed, evaluation.requests_per_s),
        "measured": {"workers": _workers(snapshot.view), "links": [_link(way) for way in state.ways]},
        "believed": {
            "offload_threshold_tokens": dict(state.thresholds.value),
            "offload_threshold_tokens_now": dict(state.thresholds_now),
            "mode": "bandwidth_scarce" if state.is_scarce else "bandwidth_abundant",
            "bound_by": current and current["bound_by"],
            "stage_utilisation": dict(evaluation.utilisation),
            "forecasts": {kind: ratios._asdict() for kind, ratios in snapshot.observed.forecasts.items()},
        },
        "current": current,
        "best": best,
        "desired": [wanted._asdict() for wanted in replicas_of(evaluation, snapshot.view, terms.home)],
        "is_decided": evaluation.wanted is not None,
        "reasons": list(evaluation.reasons),
        "terms": {
            "time_per_output_token_s": terms.time_per_output_token_s,
            "target_utilisation": terms.target_utilisation,
        },
    }


def _observed(observed: Observed, requests_per_s: float) -> dict[str, Any]:
    return {
        "num_requests": observed.num_requests,
        "requests_per_s": observed.requests_per_s,
        "cluster_requests_per_s": requests_per_s,
        "prompt_tokens": _summary(observed.prompt_tokens),
        "uncached_tokens": _summary(observed.uncached_tokens),
        "output_tokens": _summary(observed.output_tokens),
        "plans": dict(observed.kinds),
    }


def _summary(values: NDArray[np.float64]) -> dict[str, float] | None:
    if not len(values):
        return None
    quantiles = np.quantile(values, list(SHOWN_SHARES.values())).tolist()
    return {"mean": float(values.mean()), **dict(zip(SHOWN_SHARES, quantiles, strict=True))}


def _workers(view: RegistryView) -> list[dict[str, Any]]:
    found = []
    for role, workers in (("decode", view.decode), ("prefill", view.prefill)):
        for number in sorted(set(workers.rows["dc"].tolist())):
            rows = workers.rows[workers.rows["dc"] == number]
            found.append({"role": role, "dc": view.dcs[number], **_profile(rows)})
    return found


def _profile(rows: Rows) -> dict[str, Any]:
    """Return medians over the workers that have measured; over all if none has."""
    known = best_known(rows)
    first = np.zeros(len(known))
    times = {str(length): float(np.median(prefill_s(known, first, length))) for length in SHOWN_LENGTHS}
    return {
        "num_workers": len(rows),
        "num_measured": int(np.count_nonzero(is_measured(rows))),
        "step_profile": {name: float(np.median(known[name])) for name in COEFFICIENTS},
        "step_tokens": float(np.median(known["step_tokens"])),
        "prefill_s": times,
        "busy": float(rows["busy"].mean()),
        "queued_s": float(rows["queued_s"].mean()),
        "requests": float(rows["requests"].sum()),
    }


def _link(way: WideWay) -> dict[str, Any]:
    return {
        "from": way.source,
        "to": way.target,
        "kv_bytes_per_s": way.bytes_per_s,
        "is_measured": way.is_measured,
        "crossing_bytes_per_s": way.crossing_bytes_per_s,
        "use": way.use,
        "backlog_s": way.backlog_s,
        "round_trip_s": way.round_trip_s or None,
    }
