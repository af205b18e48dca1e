"""Time to the first token in an empty system: a lower bound for every load."""

from typing import NamedTuple

import numpy as np

from services.gateway.routing.planning.case import PlanningCase


class UnloadedTtft(NamedTuple):
    """Seconds from a request's arrival to its first token when it waits for nobody."""

    mean_s: float
    p90_s: float


def unloaded_ttft(case: PlanningCase, threshold_tokens: float) -> UnloadedTtft:
    """Return the mean and the 90th percentile over the lengths of a case.

    A short request takes T_prefill(L) on PD hardware. A long one takes T_prefill(L) on PrfaaS hardware, and then
    S_kv(L) / B_out on a link that it has alone: streaming by layers would hide most of that. Nothing queues, hand-over
    within a cluster and the first decode step take no time.
    """
    lengths = case.lengths.weighted(np.array([threshold_tokens]))
    away_s = case.prfaas.prefill_s(lengths.tokens) + case.kv_bytes(lengths.tokens) / case.link.usable_bytes_per_s
    ttft_s = np.where(lengths.tokens > threshold_tokens, away_s, case.pd.prefill_s(lengths.tokens))
    return UnloadedTtft(lengths.mean(ttft_s), lengths.quantile(ttft_s, 0.9))
