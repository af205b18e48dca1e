"""How many workers are wanted, as who starts them wants to know it: by role and datacenter. Pure."""

from typing import NamedTuple

import numpy as np

from services.gateway.cluster.view import RegistryView
from services.gateway.control.evaluation import Evaluation
from shared.ids import Datacenter


class RoleReplicas(NamedTuple):
    """The workers of a role in a datacenter."""

    role: str
    dc: Datacenter
    replicas: int  # wanted
    present: int


def replicas_of(evaluation: Evaluation, view: RegistryView, home: Datacenter) -> list[RoleReplicas]:
    """Return the wanted workers by role and datacenter. Those of other datacenters are divided as they are now."""
    desired, present = evaluation.desired, evaluation.present
    away = _prefill_workers(view)
    away.pop(home, None)
    shares = divided(desired.prfaas, list(away.values()))
    rows = [RoleReplicas("decode", home, desired.decode, present.decode)]
    rows.append(RoleReplicas("prefill", home, desired.prefill, present.prefill))
    return rows + [
        RoleReplicas("prefill", dc, share, there) for (dc, there), share in zip(away.items(), shares, strict=True)
    ]


def _prefill_workers(view: RegistryView) -> dict[Datacenter, int]:
    numbers, counts = np.unique(view.prefill.rows["dc"], return_counts=True)
    return {view.dcs[number]: count for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)}


def divided(total: int, weights: list[int]) -> list[int]:
    """Divide instances in proportion to those that are there: the largest remainders get what is left."""
    whole = sum(weights)
    if not whole:
        return [total, *([0] * (len(weights) - 1))] if weights else []
    shares = [total * weight / whole for weight in weights]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda at: counts[at] - shares[at])
    for at in by_remainder[: total - sum(counts)]:
        counts[at] += 1
    return counts
