"""The pool's instruments: counters of what happened, and the store's own figures read at each scrape."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.cachepool.placement import PlacementLog
from services.cachepool.store.pins import Pins
from services.cachepool.store.store import Store
from shared.metrics import PREFIX, Metrics

WRITER = "writer"
"""The label `source` of frames from local writers; frames from peers carry the peer's address."""


class PoolMetrics:
    """Exact by construction: each entry is counted where it changes hands, once."""

    def __init__(self, metrics: Metrics) -> None:
        self.published = metrics.counter(
            "entries_published", "Entries stored from writers, each the first of its kind."
        )
        self.published_bytes = metrics.counter("published_bytes", "Payload bytes of published entries.")
        self.skipped = metrics.counter("entries_skipped", "Entries a writer was told to skip.", ["reason"])
        self.refused = metrics.counter("entries_refused", "Entries dropped because everything in the pool was held.")
        self.fetched = metrics.counter("fetched_entries", "Entries asked for by readers.", ["result"])
        self.fetched_bytes = metrics.counter("fetched_bytes", "Payload bytes sent to readers.")
        self.pulled = metrics.counter("pulled_entries", "Intact entries that came from a peer pool.", ["peer"])
        self.pulled_bytes = metrics.counter("pulled_bytes", "Payload bytes from a peer pool.", ["peer"])
        self.pulls = metrics.counter("pulls", "Pulls from a peer pool.", ["peer", "outcome"])
        self.streams_lost = metrics.counter("pull_streams_lost", "Streams of pulls that broke off.", ["peer", "code"])
        self.corrupt = metrics.counter("corrupt_frames", "Frames that failed their checksum.", ["source"])
        self.suspected = metrics.counter("peers_suspected", "Peers that corrupt or hang.", ["peer"])
        self.lost = metrics.counter("entries_abandoned", "Entries whose writer left before it sent them.")
        for reason in ("present", "filling"):
            self.skipped.labels(reason)
        for result in ("hit", "miss"):
            self.fetched.labels(result)
        self.corrupt.labels(WRITER)


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
