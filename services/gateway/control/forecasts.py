"""How right forecasts of the time to the first token were: measured over predicted, by the kind of the plan."""

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

KEPT_RATIOS = 256
"""Of each kind: enough for a tenth percentile, few enough that a change of the cluster shows within minutes."""

SHARES = (0.1, 0.5, 0.9)


class RatioQuantiles(NamedTuple):
    """Measured over predicted time: 1 is right, 2 took twice as long as predicted."""

    num_requests: int
    p10: float
    p50: float
    p90: float


class ForecastErrors:
    """The latest ratios of each kind."""

    def __init__(self) -> None:
        self._ratios: dict[str, deque[float]] = {}

    def add(self, kind: str, predicted_s: float, measured_s: float) -> None:
        """Take a request whose first token has come. A prediction of no time says nothing."""
        if predicted_s > 0:
            self._ratios.setdefault(kind, deque(maxlen=KEPT_RATIOS)).append(measured_s / predicted_s)

    def quantiles(self) -> Mapping[str, RatioQuantiles]:
        """Return the quantiles of each kind that there was a request of."""
        return {
            kind: RatioQuantiles(len(ratios), *np.quantile(ratios, SHARES).tolist())
            for kind, ratios in self._ratios.items()
        }
