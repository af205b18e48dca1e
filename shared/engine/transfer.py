"""The way between an engine's pages and entries' bytes: what all its fetches and publications share."""

from dataclasses import dataclass, field

from shared.engine.codecs import CodecThreads
from shared.engine.stage import HostStager, Stager
from shared.engine.thread import WorkThread
from shared.kv.layout import KvLayout
from shared.metrics import Metrics
from shared.model.pages.kv import PagedKv


class FetchMetrics:
    """Counters of one engine's fetches."""

    def __init__(self, metrics: Metrics) -> None:
        self.landed = metrics.counter("fetched_entries", "KV entries that arrived intact and were written to pages")
        self.corrupt = metrics.counter("corrupt_entries", "KV entries that failed their checksum or size on arrival")
        self.missing = metrics.counter("missing_entries", "KV entries that were waited for in vain")


@dataclass(frozen=True)
class PageTransfer:
    """Pages, and what copies and codes their entries. Its owner closes the threads."""

    kv: PagedKv
    copier: WorkThread
    fetched: FetchMetrics
    stager: Stager = field(default_factory=HostStager)
    codecs: CodecThreads = field(default_factory=CodecThreads)

    @property
    def layout(self) -> KvLayout:
        return self.kv.layout
