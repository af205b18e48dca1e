"""The store's own figures, read at each scrape."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.cachepool.placement import PlacementLog
from services.cachepool.store.pins import Pins
from services.cachepool.store.store import Store
from shared.metrics import PREFIX


class StoreCollector(Collector):
    """Reads the store and the placement log when scraped, so that no figure can drift from them."""

    def __init__(self, store: Store, pins: Pins, placement: PlacementLog) -> None:
        self._store = store
        self._pins = pins
        self._placement = placement

    def collect(self) -> Iterator[Metric]:
        stats = self._store.stats
        gauges = (
            ("stored_blocks", "Blocks with at least one entry.", stats.num_blocks),
            ("stored_entries", "Entries (block, layer) present.", stats.num_entries),
            ("stored_bytes", "Bytes taken from the budget, bookkeeping included.", stats.used_bytes),
            ("budget_bytes", "Bytes that the pool may take.", self._store.budget_bytes),
            ("leases_held", "Blocks held by readers, once for each reader.", stats.num_leases),
            ("readers_open", "Fetch streams.", stats.num_readers),
            ("writers_open", "Publish streams and pulls from peers.", stats.num_writers),
            ("pins_held", "Names under which blocks are pinned.", len(self._pins)),
            ("pinned_bytes", "Bytes that pins may come to take, bookkeeping included.", self._pins.num_bytes),
            ("tenants_stored", "Tenants that something is stored for.", stats.num_tenants),
            ("largest_tenant_bytes", "Bytes of the tenant that takes most.", stats.largest_tenant_bytes),
            ("placement_sequence", "Number of the last placement event.", self._placement.sequence),
        )
        for name, documentation, value in gauges:
            yield GaugeMetricFamily(PREFIX + name, documentation, value)
        yield CounterMetricFamily(PREFIX + "evicted_blocks", "Blocks evicted.", stats.num_evicted)
        yield CounterMetricFamily(
            PREFIX + "evicted_window_entries", "Entries of windows evicted before their block.", stats.num_trimmed
        )
