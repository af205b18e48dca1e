"""Equations (1) to (6) of arXiv 2604.15039, a function each; (7) and (8) are what `search` looks for.

All take numbers or arrays that broadcast. A rate is in requests/s, a time in seconds, KV in bytes. Where a mean is
asked for, the caller has chosen which one: `case.Averaging`.
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

N = TypeVar("N", float, NDArray[np.float64])


def kv_throughput_bytes_per_s(kv_bytes: N, prefill_s: N) -> N:
    """(1) The KV that one instance makes while it prefills requests of one length: S_kv(l) / T_prefill(l)."""
    return kv_bytes / prefill_s


def egress_needed_bytes_per_s(instances: float, mean_kv_bytes: N, mean_prefill_s: N) -> N:
    """(2) What a cluster that is never idle sends: instances (the paper's N/P) times E[S_kv] / E[T_prefill]."""
    return instances * kv_throughput_bytes_per_s(mean_kv_bytes, mean_prefill_s)


def instances_rate_per_s(instances: float, prefill_s: N) -> N:
    """(3), its first term, and (4): requests that so many prefill instances compute, each one after another."""
    return instances / prefill_s


def link_rate_per_s(usable_bytes_per_s: float, kv_bytes: N) -> N:
    """(3), its second term: requests whose KV the link carries, B_out / S_kv(l_long)."""
    return usable_bytes_per_s / kv_bytes


def decode_rate_per_s(instances: float, batch: float, step_s: float, output_tokens: float) -> float:
    """(5) Requests that decode instances finish: N_d * BS_max / (T_decode * L_out)."""
    return instances * batch / (step_s * output_tokens)


def rate_bound_per_s(rate_per_s: NDArray[np.float64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    """(6), one term: the rate of all requests at which a stage that serves a `share` of them is full.

    A stage that serves nobody bounds nothing, whatever its rate: infinity.
    """
    bound_per_s = np.full(np.broadcast(rate_per_s, share).shape, np.inf)
    np.divide(rate_per_s, share, out=bound_per_s, where=share > 0)
    return bound_per_s


def request_rate_per_s(
    prfaas_per_s: NDArray[np.float64],
    pd_prefill_per_s: NDArray[np.float64],
    pd_decode_per_s: float,
    long_share: NDArray[np.float64],
    short_share: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(6) Lambda = min(Th_prfaas / p, Th_pdp / (1 - p), Th_pdd).

    The shares p and 1 - p come separately, so that rounding gives neither stage a request that does not exist.
    """
    offloaded = rate_bound_per_s(prfaas_per_s, long_share)
    at_home = rate_bound_per_s(pd_prefill_per_s, short_share)
    return np.minimum(np.minimum(offloaded, at_home), pd_decode_per_s)
