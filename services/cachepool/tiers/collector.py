"""The object tier's own figures, read at each scrape."""

from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.cachepool.tiers.index import ObjectIndex
from shared.metrics import PREFIX


class TierCollector(Collector):
    """Reads the index when scraped, and how many blocks wait to be written."""

    def __init__(self, index: ObjectIndex, num_waiting: Callable[[], int]) -> None:
        self._index = index
        self._num_waiting = num_waiting

    def collect(self) -> Iterator[Metric]:
        gauges = (
            ("objects_stored", "Blocks in the object tier.", len(self._index)),
            ("object_stored_bytes", "Bytes of the objects.", self._index.used_bytes),
            ("object_budget_bytes", "Bytes that the objects may take; 0: unlimited.", self._index.budget_bytes or 0),
            ("object_writes_waiting", "Blocks that wait to be written or are being written.", self._num_waiting()),
        )
        for name, documentation, value in gauges:
            yield GaugeMetricFamily(PREFIX + name, documentation, value)
