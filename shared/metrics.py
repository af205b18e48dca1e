"""Prometheus instruments under the prefix `prfaas:`, in a registry that the process owns."""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

# Buckets as in vLLM, so that existing dashboards and recording rules fit.
TTFT_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
INTER_TOKEN_BUCKETS_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_BUCKETS_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
LAG_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

PREFIX = "prfaas:"


class Metrics:
    """Owns one registry; two of them in one process (tests) do not meet. An instrument is made once, by its owner."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def counter(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
        """Return a counter; Prometheus appends `_total` to its name."""
        return Counter(PREFIX + name, documentation, labels, registry=self.registry)

    def gauge(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(PREFIX + name, documentation, labels, registry=self.registry)

    def histogram(
        self, name: str, documentation: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> Histogram:
        return Histogram(PREFIX + name, documentation, labels, buckets=buckets, registry=self.registry)

    def loop_histogram(
        self, name: str, documentation: str, buckets: Sequence[float], labels: Sequence[str], values: Sequence[str]
    ) -> "LoopHistogram":
        """Return a histogram for what comes very often, of one event loop and one set of labels."""
        instrument = LoopHistogram(name, documentation, buckets, dict(zip(labels, values, strict=True)))
        self.registry.register(instrument)
        return instrument


class LoopHistogram(Collector):
    """A histogram with one set of labels that belongs to the event loop: it takes no locks, and an observation takes a
    fifth of the time that it takes Prometheus' own."""

    def __init__(self, name: str, documentation: str, buckets: Sequence[float], labels: Mapping[str, str]) -> None:
        """`buckets`: upper bounds, ascending; one without bound follows them."""
        self._family = (PREFIX + name, documentation)
        self._labels = dict(labels)
        self._bounds = tuple(buckets)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(*self._family, labels=list(self._labels))
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        family.add_metric(list(self._labels.values()), buckets, self._sum)
        yield family


async def watch_loop_lag(metrics: Metrics, interval_s: float = 0.25) -> None:
    """Measure for ever how late the event loop wakes a sleeper: long values mean that something blocks it."""
    lag = metrics.histogram("event_loop_lag_seconds", "How late the event loop woke a sleeper.", LAG_BUCKETS_S)
    while True:
        due = time.monotonic() + interval_s
        await asyncio.sleep(interval_s)
        lag.observe(max(0.0, time.monotonic() - due))
