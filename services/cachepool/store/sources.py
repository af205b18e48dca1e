"""Who is asked for what: a reader's absent entries, dealt out to the pools that its plan names."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.cachepool.store.subscription import Subscription
from shared.ids import Datacenter
from shared.kv.entries import BlockEntries, Source
from shared.kv.layout import KvLayout
from shared.kv.rendezvous import owner_indices


class Peer(NamedTuple):
    """A pool that entries are pulled from."""

    address: str
    dc: Datacenter  # empty: this one


class SourcedReader:
    """A reader together with the sources that it named, each of which is asked for each block at most once."""

    def __init__(
        self,
        reader: Subscription,
        layout: KvLayout,
        sources: Sequence[Source],
        wait_s: float,
        *,
        is_background: bool = False,
    ) -> None:
        self.reader = reader
        self.layout = layout
        self.wait_s = wait_s
        self.is_background = is_background
        self._sources = sources
        self._owners = [_owners(reader, source) for source in sources]
        self._asked: set[tuple[int, int]] = set()  # (source, block index)

    def next_requests(self, may_ask: Callable[[str], bool]) -> dict[Peer, list[BlockEntries]]:
        """Return, by peer, the entries without a writer that an untried source may have. They count as asked.

        `may_ask(address)` says of a peer whether it is asked at all.
        """
        requests: dict[Peer, list[BlockEntries]] = {}
        for index, layers in self.reader.without_writer():
            for number, source in enumerate(self._sources):
                if not source.first <= index < source.end or (number, index) in self._asked:
                    continue
                self._asked.add((number, index))
                address = source.nodes[self._owners[number][index - source.first]]
                if may_ask(address):
                    block = BlockEntries(self.reader.blocks[index].key, layers)
                    requests.setdefault(Peer(address, source.dc), []).append(block)
                    break
        return requests


def _owners(reader: Subscription, source: Source) -> NDArray[np.intp]:
    """Return for each block of a source's range which of its nodes is asked."""
    return owner_indices([block.key for block in reader.blocks[source.first : source.end]], source.nodes)
