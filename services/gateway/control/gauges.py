"""What the controller wants and believes, as gauges that autoscalers can follow."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.gateway.control.replicas import replicas_of
from services.gateway.control.state import ControlState
from shared.ids import Datacenter
from shared.metrics import PREFIX


class PlanCollector(Collector):
    """Reads the controller's state when scraped."""

    def __init__(self, state: Callable[[], ControlState | None], home: Datacenter) -> None:
        self._state = state
        self._home = home

    def collect(self) -> Iterator[Metric]:
        desired = GaugeMetricFamily(
            PREFIX + "desired_replicas", "Workers that the observed requests take.", labels=["role", "dc"]
        )
        utilisation = GaugeMetricFamily(
            PREFIX + "stage_utilisation", "Share of a stage's rate that is asked for.", labels=["stage"]
        )
        threshold = GaugeMetricFamily(
            PREFIX + "offload_threshold_tokens", "Uncached tokens from which prefill is there.", labels=["dc"]
        )
        scarce = GaugeMetricFamily(
            PREFIX + "link_scarce", "1 while bandwidth is scarce on the link from there.", labels=["dc"]
        )
        if (state := self._state()) is not None:
            for wanted in replicas_of(state.evaluation, state.snapshot.view, self._home):
                desired.add_metric([wanted.role, wanted.dc], wanted.replicas)
            _add(utilisation, state.evaluation.utilisation)
            _add(threshold, {dc: tokens for dc, tokens in state.thresholds.value.items() if tokens is not None})
            _add(scarce, {dc: float(shown.value) for dc, shown in state.scarce.items()})
        yield from (desired, utilisation, threshold, scarce)


def _add(family: GaugeMetricFamily, values: Mapping[Any, float]) -> None:
    for label, value in values.items():
        family.add_metric([str(label)], value)
