"""What a simulation found: arrays by request, in order of arrival, and the links' use over time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.gateway.routing.plan import Slo

Floats = NDArray[np.float64]


class LinkHistory(NamedTuple):
    """One link over time, a sample every `Scenario.sample_every_s`."""

    bytes_per_s: Floats  # carried, since the sample before
    capacity_bytes_per_s: Floats  # at the sample
    backlog_bytes: Floats  # at the sample


@dataclass(frozen=True)
class Outcome:
    """Every array is [requests]; times are NaN for what did not happen."""

    arrival_s: Floats
    dc: tuple[str, ...]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    uncached_tokens: NDArray[np.int64]  # that some engine computed, the tail on decode included
    kind: tuple[str, ...]  # of the last plan; "" when there was none
    prefill_dc: tuple[str, ...]  # "": none
    ttft_s: Floats
    ttft_forecast_s: Floats
    time_per_output_token_s: Floats  # NaN for answers of one token
    finished_s: Floats  # absolute
    rejected: NDArray[np.bool_]
    rescued: NDArray[np.bool_]  # decode computed what came too late
    attempts: NDArray[np.int64]
    links: Mapping[tuple[str, str], LinkHistory]
    crossed_bytes: Mapping[tuple[str, str], float]
    slo: Slo
    num_events: int
    end_s: float

    @property
    def num_requests(self) -> int:
        return len(self.arrival_s)

    @property
    def good(self) -> NDArray[np.bool_]:
        """Requests that finished and met the SLO; an answer of one token has no time per output token to miss."""
        most_ttft_s, most_tpot_s = (math.inf if limit is None else limit for limit in self.slo)
        tpot_s = np.nan_to_num(self.time_per_output_token_s, nan=0.0)
        return np.isfinite(self.finished_s) & (self.ttft_s <= most_ttft_s) & (tpot_s <= most_tpot_s)

    def within(self, from_s: float, until_s: float = float("inf")) -> NDArray[np.bool_]:
        """Return which requests arrived in a span of time: without a run's beginning, say."""
        return (self.arrival_s >= from_s) & (self.arrival_s < until_s)

    def goodput_per_s(self, from_s: float = 0.0, until_s: float | None = None) -> float:
        """Return the good ones of the requests that arrived in a span, per second of it."""
        until_s = float(self.arrival_s[-1]) if until_s is None else until_s
        return float((self.good & self.within(from_s, until_s)).sum()) / (until_s - from_s)

    def throughput_per_s(self, from_s: float, until_s: float) -> float:
        """Return the requests that finished in a span, per second."""
        return float(((self.finished_s >= from_s) & (self.finished_s < until_s)).sum()) / (until_s - from_s)

    def ttft_quantile_s(self, share: float, from_s: float = 0.0) -> float:
        """Return a quantile of TTFT; requests without a first token count as the slowest."""
        times = self.ttft_s[self.within(from_s)]
        return float(np.quantile(np.where(np.isnan(times), np.inf, times), share, method="higher"))


class RequestRow:
    """One request while it is simulated."""

    __slots__ = (
        "arrival_s",
        "attempts",
        "dc",
        "finished_s",
        "forecast_s",
        "kind",
        "number",
        "output_tokens",
        "prefill_dc",
        "prompt_tokens",
        "rejected",
        "rescued",
        "started_s",
        "uncached_tokens",
    )

    def __init__(self, number: int, arrival_s: float, dc: str, prompt_tokens: int, output_tokens: int) -> None:
        self.number = number
        self.arrival_s = arrival_s
        self.dc = dc
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.uncached_tokens = 0
        self.kind = self.prefill_dc = ""
        self.started_s = self.finished_s = self.forecast_s = float("nan")
        self.rejected = self.rescued = False
        self.attempts = 0

    @property
    def time_per_output_token_s(self) -> float:
        more = self.output_tokens - 1
        return (self.finished_s - self.started_s) / more if more > 0 else float("nan")
