"""What first tokens teach: how good forecasts are, and which device has a prompt now."""

from collections.abc import Sequence

from services.gateway.cluster.devices import ServedPrompts
from services.gateway.control.observed import Observations
from services.gateway.metrics import GatewayMetrics
from services.gateway.routing.calibration import Calibration
from services.gateway.routing.plan import Plan
from shared.ids import BlockKey


class Feedback:
    """Passes each first token on to everything that learns from it."""

    def __init__(
        self,
        calibration: Calibration,
        served: ServedPrompts,
        observations: Observations,
        metrics: GatewayMetrics | None = None,
    ) -> None:
        """`metrics`: where forecasts are compared for people to see; None: nowhere."""
        self._metrics = metrics
        self._calibration = calibration
        self._served = served
        self._observations = observations

    def first_token(self, plan: Plan, keys: Sequence[BlockKey], ttft_s: float | None, now: float) -> None:
        """Note that the first token of a plan has come, so long after the plan was made. `keys` are the prompt's.

        None: the plan was given up, and the time says nothing of others like it.
        """
        if ttft_s is not None:
            self._calibration.measured(plan, ttft_s, now)
            self._observations.first_token(plan, ttft_s)
            if self._metrics is not None:
                self._metrics.forecast_met(plan.kind, plan.forecast.ttft_s, ttft_s)
        self._served.note(keys, plan.decode.worker)
