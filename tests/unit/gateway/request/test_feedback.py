"""First tokens as people see them: measured over predicted."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from services.gateway.cluster.devices import ServedPrompts
from services.gateway.control.observed import Observations
from services.gateway.metrics import GatewayMetrics
from services.gateway.request.feedback import Feedback
from services.gateway.routing.calibration import Calibration
from shared.metrics import Metrics
from tests.support.plans import plan


@pytest.mark.parametrize(
    ("predicted_s", "measured_s", "ratios"),
    [(2.0, [3.0], [1.5]), (2.0, [1.0, 4.0], [0.5, 2.0]), (0.0, [1.0], []), (2.0, [None], [])],
)
def test_a_forecast_is_compared_with_what_came(
    predicted_s: float, measured_s: Sequence[float | None], ratios: Sequence[float]
) -> None:
    metrics, made = Metrics(), plan()
    feedback = Feedback(Calibration(), ServedPrompts(), Observations(), GatewayMetrics(metrics, "m"))
    for seconds in measured_s:
        feedback.first_token(replace(made, forecast=replace(made.forecast, ttft_s=predicted_s)), (), seconds, 1.0)
    labels = {"model_name": "m", "kind": "remote"}
    assert metrics.registry.get_sample_value("prfaas:forecast_ratio_count", labels) == (len(ratios) or None)
    assert metrics.registry.get_sample_value("prfaas:forecast_ratio_sum", labels) == (sum(ratios) or None)
