"""Counters of what the object tier did."""

from shared.errors import PrfaasError
from shared.metrics import Metrics

CALL_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SKIPPED = ("queue_full", "evicted", "no_room", "failed", "corrupt")


class TierMetrics:
    """Each thing is counted where it happens, once."""

    def __init__(self, metrics: Metrics) -> None:
        self.written = metrics.counter("objects_written", "Blocks written to the object tier.")
        self.written_bytes = metrics.counter("object_written_bytes", "Bytes written to the object tier.")
        self.read = metrics.counter("object_entries_read", "Intact entries read from the object tier.")
        self.read_bytes = metrics.counter("object_read_bytes", "Bytes read from the object tier.")
        self.refused = metrics.counter("object_entries_refused", "Entries read for which memory had no room.")
        self.skipped = metrics.counter("objects_not_written", "Blocks that were not written, by reason.", ["reason"])
        self.failures = metrics.counter(
            "object_failures", "Calls of the object store that failed, by kind.", ["operation", "kind"]
        )
        self.corrupt = metrics.counter("object_corrupt_entries", "Entries of the object tier that were not intact.")
        self.dropped = metrics.counter("objects_dropped", "Objects deleted or forgotten, by reason.", ["reason"])
        self.recovered = metrics.counter("objects_recovered", "Objects of an earlier life that were found whole.")
        self.torn = metrics.counter("objects_torn", "Objects of an earlier life that were not whole, and discarded.")
        self.call_s = metrics.histogram(
            "object_call_seconds", "Time of a call of the object store.", CALL_BUCKETS_S, ["operation"]
        )
        for reason in SKIPPED:
            self.skipped.labels(reason)
        for reason in ("evicted", "corrupt", "missing"):
            self.dropped.labels(reason)

    def on_call(self, operation: str, seconds: float, error: PrfaasError | None) -> None:
        """A bucket's `on_call`."""
        self.call_s.labels(operation).observe(seconds)
        if error is not None:
            self.failures.labels(operation, error.code).inc()
