"""What requests cost each stage, for every threshold: the means that equations (3) to (6) take."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.gateway.routing.planning.case import Averaging, PlanningCase
from services.gateway.routing.planning.lengths import PartialSums, WeightedLengths
from services.gateway.routing.planning.profiles import LengthProfile

NOBODY = 1e-12
"""A smaller share of requests is none: it is below the rounding of the shares, and no mean over it would be one."""


@dataclass(frozen=True, slots=True)
class StageLoads:
    """Shares of requests, and means over those at or below each threshold (short) and above it (long).

    Every field has the thresholds' shape. The means of a class without requests are NaN. Times and `link_kv_bytes` are
    averaged as the case says, `long_kv_bytes` is the plain mean.
    """

    long_share: NDArray[np.float64]  # p = P(L > t)
    short_share: NDArray[np.float64]  # 1 - p, a sum of its own
    long_tokens: NDArray[np.float64]  # l_long = E[L | L > t]
    short_tokens: NDArray[np.float64]  # l_short = E[L | L <= t]
    prfaas_s: NDArray[np.float64]  # T_prefill of long requests on PrfaaS hardware
    pd_prefill_s: NDArray[np.float64]  # T_prefill of short requests on PD hardware
    link_kv_bytes: NDArray[np.float64]  # S_kv of long requests as (3) takes it
    long_kv_bytes: NDArray[np.float64]  # E[S_kv(L) | L > t]


def stage_loads(case: PlanningCase, thresholds: NDArray[np.float64]) -> StageLoads:
    """Average a case's profiles over the lengths on both sides of each threshold."""
    lengths = case.lengths.weighted(thresholds)
    shares = PartialSums(*map(_share, lengths.split(np.ones_like(lengths.tokens), thresholds)))
    tokens = lengths.split(lengths.tokens, thresholds)
    long_tokens = _conditional(tokens.above, shares.above)
    short_tokens = _conditional(tokens.below, shares.below)
    long_kv_bytes = _mean_above(case.kv_bytes, lengths, thresholds, shares.above)
    if case.averaging is Averaging.TIME_OF_MEAN:
        prfaas_s = case.prfaas.prefill_s(long_tokens)
        pd_prefill_s = case.pd.prefill_s(short_tokens)
        link_kv_bytes = case.kv_bytes(long_tokens)
    else:
        prfaas_s = _mean_above(case.prfaas.prefill_s, lengths, thresholds, shares.above)
        at_home = lengths.split(case.pd.prefill_s(lengths.tokens), thresholds)
        pd_prefill_s = _conditional(at_home.below, shares.below)
        link_kv_bytes = long_kv_bytes
    return StageLoads(
        shares.above, shares.below, long_tokens, short_tokens, prfaas_s, pd_prefill_s, link_kv_bytes, long_kv_bytes
    )


def _share(weight: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(weight < NOBODY, 0.0, np.minimum(weight, 1.0))


def _mean_above(
    profile: LengthProfile, lengths: WeightedLengths, thresholds: NDArray[np.float64], share: NDArray[np.float64]
) -> NDArray[np.float64]:
    return _conditional(lengths.split(profile(lengths.tokens), thresholds).above, share)


def _conditional(partial: NDArray[np.float64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(partial, share, out=np.full_like(partial, np.nan), where=share > 0)
