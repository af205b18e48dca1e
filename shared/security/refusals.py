"""Connections that certificates or rights did not allow: counted, and told in the log, but not each of a flood."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.log import get_logger
from shared.metrics import PREFIX

Kind: TypeAlias = Literal["grpc", "http", "lane"]
By: TypeAlias = Literal["us", "peer"]

TELL_EVERY_S = 10.0
"""Between two lines of the same kind."""


class Refusals:
    """Counts refusals by the kind of connection and by who refused. Any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: Counter[tuple[Kind, By]] = Counter()
        self._told: dict[tuple[Kind, By], tuple[float, int]] = {}  # when, and how many there were then

    def note(self, kind: Kind, by: By, reason: str, peer: str = "") -> None:
        """Count one, and log it unless another of its kind was logged a moment ago."""
        with self._lock:
            self._counts[kind, by] += 1
            count = self._counts[kind, by]
            told_at, told_count = self._told.get((kind, by), (-TELL_EVERY_S, 0))
            if self._clock() < told_at + TELL_EVERY_S:
                return
            self._told[kind, by] = (self._clock(), count)
        event = "connection_refused" if by == "us" else "connection_refused_by_peer"
        get_logger().warning(event, kind=kind, peer=peer, reason=reason, num_since_last_line=count - told_count)

    def counts(self) -> dict[tuple[Kind, By], int]:
        """Return how many there were."""
        with self._lock:
            return dict(self._counts)


class SecurityCollector(Collector):
    """Shows refusals, and for how long the own certificate is good."""

    def __init__(self, refusals: Refusals, not_after: Callable[[], float]) -> None:
        self._refusals = refusals
        self._not_after = not_after

    def collect(self) -> Iterator[Metric]:
        refused = CounterMetricFamily(
            PREFIX + "connections_refused",
            "Connections and calls that certificates or rights did not allow, by who refused: us or the peer.",
            labels=["kind", "by"],
        )
        for (kind, by), count in self._refusals.counts().items():
            refused.add_metric([kind, by], count)
        yield refused
        yield GaugeMetricFamily(
            PREFIX + "certificate_expiry_seconds",
            "Seconds until the own certificate expires; negative afterwards.",
            value=self._not_after() - time.time(),
        )
