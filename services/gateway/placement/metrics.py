"""How sure the placement index is of each pool, as metrics."""

from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.gateway.placement.index import PlacementIndex
from shared.metrics import PREFIX


class IndexCollector(Collector):
    """Reads the index when scraped, so that no figure can drift from it."""

    def __init__(self, index: PlacementIndex, clock: Callable[[], float]) -> None:
        self._index = index
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        blocks = _by_holder("placement_blocks", "Blocks that the pool has told of.")
        assumed = _by_holder("placement_assumed_blocks", "Blocks credited ahead of the pool's own word.")
        stale = _by_holder("placement_stale", "1 while nothing is known, for want of a snapshot.")
        silent = _by_holder("placement_silent_seconds", "Since the pool's last placement event.")
        for holder, state in self._index.certainty(self._clock()).items():
            blocks.add_metric([holder], state.num_blocks)
            assumed.add_metric([holder], state.num_assumed)
            stale.add_metric([holder], state.stale)
            if state.silent_s is not None:
                silent.add_metric([holder], state.silent_s)
        yield from (blocks, assumed, stale, silent)
        yield GaugeMetricFamily(PREFIX + "placement_index_bytes", "Memory of the table of blocks.", self._index.nbytes)


def _by_holder(name: str, documentation: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, documentation, labels=["holder"])
