"""The way between an engine's pages and entries' bytes: what all its fetches and publications share."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from shared.engine.codecs import CodecThreads
from shared.engine.stage import HostStager, Stager
from shared.engine.thread import WorkThread
from shared.kv.codec import Codec, Payload
from shared.kv.layout import KvLayout
from shared.kv.payloads import digests
from shared.measuring.rates import MovingRate
from shared.metrics import Metrics
from shared.model.pages.kv import PagedKv

SHARE_BYTES = 1024 * 1024
"""What is worth another thread: it reads this in about the time that the thread takes to begin."""


class TransferMetrics:
    """Counters of one engine's fetches and publications."""

    def __init__(self, metrics: Metrics) -> None:
        self.landed = metrics.counter("fetched_entries", "KV entries that arrived intact and were written to pages")
        self.corrupt = metrics.counter("corrupt_entries", "KV entries that failed their checksum or size on arrival")
        self.missing = metrics.counter("missing_entries", "KV entries that were waited for in vain")
        self._raw = metrics.counter("sent_raw_bytes", "KV sent to a pool, before its codec", ("codec",))
        self._coded = metrics.counter("sent_coded_bytes", "KV sent to a pool, as its codec left it", ("codec",))

    def sent(self, codec: Codec, num_raw_bytes: int, num_bytes: int) -> None:
        """Count a message of entries that has left, before and behind its codec."""
        name = codec.name.lower()
        self._raw.labels(name).inc(num_raw_bytes)
        self._coded.labels(name).inc(num_bytes)


class PrefixMetrics:
    """Where the KV of an engine's prompts was found, in vLLM's words: on the device, or outside, in a pool.

    Counts each prompt once, in tokens. Hits of the pool include what another worker has just computed for it.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._queries = metrics.counter("prefix_cache_queries", "Prompt tokens looked up on the device")
        self._hits = metrics.counter("prefix_cache_hits", "Prompt tokens whose KV the device had")
        self._external_queries = metrics.counter(
            "external_prefix_cache_queries", "Prompt tokens that the device did not have"
        )
        self._external_hits = metrics.counter("external_prefix_cache_hits", "Prompt tokens whose KV a pool brought")

    def looked_up(self, num_tokens: int, on_device: int, present: int) -> None:
        """Count a prompt: its tokens, the leading ones that the device had, and all that were not computed here."""
        on_device = min(on_device, present)
        self._queries.inc(num_tokens)
        self._hits.inc(on_device)
        self._external_queries.inc(num_tokens - on_device)
        self._external_hits.inc(present - on_device)


def _bytes_per_s() -> MovingRate:
    return MovingRate(time.monotonic)


@dataclass(frozen=True)
class PageTransfer:
    """Pages, and what copies and codes their entries. Its owner closes the threads."""

    kv: PagedKv
    copier: WorkThread
    metrics: TransferMetrics
    stager: Stager = field(default_factory=HostStager)
    codecs: CodecThreads = field(default_factory=CodecThreads)
    sending: MovingRate = field(default_factory=_bytes_per_s)  # of KV, while it is sealed and sent
    landing: MovingRate = field(default_factory=_bytes_per_s)  # of KV, while it is verified and written to pages

    @property
    def layout(self) -> KvLayout:
        return self.kv.layout

    def digests(self, headers: Sequence[bytes], payloads: Sequence[Payload]) -> list[int]:
        """As `shared.kv.payloads.digests`, in as many threads as the engine gives to codecs."""
        num_threads = min(self.codecs.num_threads, sum(map(len, payloads)) // SHARE_BYTES)
        return digests(headers, payloads, num_threads)
