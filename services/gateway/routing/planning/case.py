"""What a capacity plan is made from: two clusters, a link between them, a model and its requests. Data only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from services.gateway.routing.planning.lengths import LengthDistribution
from services.gateway.routing.planning.profiles import LengthProfile, require_positive

BYTES_PER_GBIT = 1e9 / 8


class Averaging(StrEnum):
    """How a stage's throughput follows from many lengths.

    Prefill time is convex in the length, so the time of the mean length is at most the mean time (Jensen): `T(E[L])`
    never promises less than `E[T(L)]`, and an instance that serves one request after another keeps only the latter.
    """

    MEAN_TIME = "E[T(L)]"  # what instances sustain
    TIME_OF_MEAN = "T(E[L])"  # as equations (3) and (4) are printed


@dataclass(frozen=True, slots=True)
class DecodePoint:
    """A decode instance at work: so many requests at a time, a token of each in every step."""

    batch: int  # BS_max
    step_s: float  # T_decode

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError("a decode batch must have at least one request")
        if not 0 < self.step_s < math.inf:
            raise ValueError("the time of a decode step must be positive")


@dataclass(frozen=True, slots=True)
class PrfaasCluster:
    """Compute-dense instances that only prefill. Several numbers of instances: the best one is searched."""

    prefill_s: LengthProfile
    instances: tuple[int, ...]  # candidates for N_prfaas

    def __post_init__(self) -> None:
        if not self.instances or min(self.instances) < 0:
            raise ValueError("a PrfaaS cluster needs a number of instances, not below 0")


@dataclass(frozen=True, slots=True)
class PdCluster:
    """Instances near the users, each of which either prefills or decodes: N_p + N_d of them."""

    prefill_s: LengthProfile
    decode: DecodePoint
    instances: int

    def __post_init__(self) -> None:
        if self.instances < 1:
            raise ValueError("a PD cluster needs at least one instance")


@dataclass(frozen=True, slots=True)
class WideLink:
    """The way from the PrfaaS cluster to the PD cluster."""

    capacity_gbit_s: float
    usable_share: float = 1.0  # that KV may take

    def __post_init__(self) -> None:
        if not 0 < self.capacity_gbit_s < math.inf:
            raise ValueError("the capacity of a link must be positive")
        if not 0 < self.usable_share <= 1:
            raise ValueError("the usable share of a link must lie above 0 and not above 1")

    @property
    def usable_gbit_s(self) -> float:
        """B_out."""
        return self.capacity_gbit_s * self.usable_share

    @property
    def usable_bytes_per_s(self) -> float:
        return self.usable_gbit_s * BYTES_PER_GBIT


@dataclass(frozen=True, slots=True)
class PlanningCase:
    """Everything that the equations know. Raises ValueError for a profile that is not positive at some length."""

    lengths: LengthDistribution
    output_tokens: float  # L_out, the mean
    kv_bytes: LengthProfile  # S_kv, as it crosses the link
    prfaas: PrfaasCluster
    pd: PdCluster
    link: WideLink
    averaging: Averaging = Averaging.MEAN_TIME

    def __post_init__(self) -> None:
        if not 0 < self.output_tokens < math.inf:
            raise ValueError("the mean number of output tokens must be positive")
        tokens = self.lengths.weighted(np.empty(0)).tokens
        for profile in (self.kv_bytes, self.prfaas.prefill_s, self.pd.prefill_s):
            require_positive(profile, tokens)


@dataclass(frozen=True, slots=True)
class Division:
    """How a case may be divided: what a plan chooses."""

    threshold_tokens: float  # t: longer requests are offloaded
    prfaas_instances: int  # N_prfaas
    prefill_instances: int  # N_p
    decode_instances: int  # N_d


def fastest_decode(points: Sequence[DecodePoint], limit_s: float) -> DecodePoint:
    """Return the point of most tokens per second whose step ends within the SLO of time per output token.

    Raises ValueError if none does.
    """
    within = [point for point in points if point.step_s <= limit_s]
    if not within:
        raise ValueError(f"no decode batch has a step of at most {limit_s:g} s")
    return max(within, key=lambda point: (point.batch / point.step_s, -point.batch))


def threshold_grid(lengths: LengthDistribution, step_tokens: float) -> NDArray[np.float64]:
    """Return the thresholds of a search: multiples of the step from 0, and the longest length, which offloads none."""
    if not 0 < step_tokens < math.inf:
        raise ValueError("the step of thresholds must be positive")
    return np.append(np.arange(0.0, lengths.max_tokens, step_tokens), lengths.max_tokens)
