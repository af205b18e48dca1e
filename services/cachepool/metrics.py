"""Counters of what a pool did."""

from shared.metrics import Metrics

WRITER = "writer"
"""The label `source` of frames from local writers; frames from peers carry the peer's address."""
MEMORY = "memory"
"""That of entries which this pool held, and which a reader found corrupt."""


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
        self.lane_sent = metrics.counter("lane_sent_bytes", "Payload bytes sent to readers, by lane.", ["lane"])
        self.lane_received = metrics.counter("lane_received_bytes", "Payload bytes of writers and pulls.", ["lane"])
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
