"""What the planner found, as tables for people."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields

from services.gateway.plan.columns import TITLES, aligned, number
from services.gateway.routing.planning.capacity import CapacityPlan
from services.gateway.routing.planning.deployments import Deployments
from services.gateway.routing.planning.egress import EgressDemand

Row = tuple[str, Callable[[CapacityPlan], str]]


ROWS: Sequence[Row] = (
    ("threshold t, tokens", lambda plan: number(plan.threshold_tokens, ",.0f")),
    (
        "N_prfaas / N_p / N_d",
        lambda plan: f"{plan.prfaas_instances} / {plan.prefill_instances} / {plan.decode_instances}",
    ),
    ("offloaded p, %", lambda plan: number(100 * plan.long_share, ".1f")),
    ("E[L | L > t], tokens", lambda plan: number(plan.long_tokens, ",.0f")),
    ("E[L | L <= t], tokens", lambda plan: number(plan.short_tokens, ",.0f")),
    ("Th_prfaas, req/s", lambda plan: number(plan.prfaas_per_s)),
    ("  of its compute", lambda plan: number(plan.prfaas_compute_per_s)),
    ("  of the link", lambda plan: number(plan.link_per_s)),
    ("Th_pdp, req/s", lambda plan: number(plan.pd_prefill_per_s)),
    ("Th_pdd, req/s", lambda plan: number(plan.pd_decode_per_s)),
    ("Lambda, req/s", lambda plan: number(plan.requests_per_s)),
    ("bound by", lambda plan: plan.bound_by.value),
    ("TTFT mean, s", lambda plan: number(plan.ttft_mean_s)),
    ("TTFT P90, s", lambda plan: number(plan.ttft_p90_s)),
    ("egress needed by (2), Gbit/s", lambda plan: number(plan.egress_needed_gbit_s)),
    ("egress at Lambda, Gbit/s", lambda plan: number(plan.egress_gbit_s)),
    ("  of the link, %", lambda plan: number(100 * plan.link_share, ".1f")),
)


def deployments_table(ours: Deployments) -> Iterator[str]:
    """Yield a table of the three deployments, a column each."""
    plans = [getattr(ours, field.name) for field in fields(ours)]
    rows = [(label, *map(text, plans)) for label, text in ROWS]
    base = ours.homogeneous_pd.requests_per_s
    gains = (number(plan.requests_per_s / base if base else None) for plan in plans)
    rows.append(("Lambda / homogeneous", *gains))
    yield from aligned([("", *TITLES.values()), *rows])


def egress_table(demands: Sequence[EgressDemand]) -> Iterator[str]:
    """Yield what each model needs of a link by prompt length, and how many instances the link carries."""
    lengths = [f"{tokens:,.0f}" for tokens in demands[0].tokens]
    rows = [("", *lengths, "carried", *lengths)]
    for demand in demands:
        needed = (number(gbit_s, ",.1f") for gbit_s in demand.cluster_gbit_s)
        instances = (number(whole, ",.0f") for whole in demand.carried_instances)
        rows.append((demand.model, *needed, "yes" if demand.is_carried else "no", *instances))
    yield from aligned(rows)
