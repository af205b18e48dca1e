"""KV on its way to the pool of decode's datacenter: what is cached elsewhere at once, the rest as it is computed."""

from collections.abc import Callable, Sequence

from shared.ids import BlockKey
from shared.kv.entries import Source
from simulator.network.fabric import WatchedTransfer
from simulator.places import Places


class KvDelivery:
    """One transfer from each datacenter that has, or will have, blocks of a prompt.

    `on_complete` is called once, when all of them are over and whoever computes blocks, if somebody does, has ended.
    `ready_blocks` then says how many leading blocks have come.
    """

    def __init__(
        self,
        places: Places,
        home: str,
        maker: str | None,  # the datacenter of the prefill worker
        keys: Sequence[BlockKey],
        on_complete: Callable[[], None],
    ) -> None:
        self._places = places
        self._home = home
        self._maker = maker
        self._keys = keys
        self._on_complete = on_complete
        self._crossings: dict[str, WatchedTransfer] = {}
        self._is_made = maker is None
        self._is_over = False
        self.ready_blocks = len(keys)
        self.present_blocks = 0  # leading blocks that home had at the beginning
        self.has_failed = False

    @property
    def crosses(self) -> bool:
        """Whether what is computed has to cross a link."""
        return self._maker is not None and self._maker != self._home

    def begin(self, sources: Sequence[Source]) -> None:
        """Ask every source for what it has. Blocks that a stale plan counts on and nobody has are not ready."""
        here = self.present_blocks = self._places.pools[self._home].num_leading(self._keys)
        first = min((source.first for source in sources), default=len(self._keys))
        if self._maker is None or (here < first and self.crosses):
            self._lacks(here, before=first)
        for source in sources:
            self._ask(source)
        if self.crosses and self._maker not in self._crossings:
            self._open(str(self._maker))
        if not self._crossings:
            self._check()

    def offer(self, num_bytes: float) -> None:
        """Send what has just been computed."""
        crossing = self._crossings.get(self._maker or "")
        if crossing is not None:
            crossing.transfer.offer(num_bytes)

    def made(self) -> None:
        """Everything is computed; what crosses is on its way."""
        self._is_made = True
        crossing = self._crossings.get(self._maker or "")
        if crossing is not None:
            crossing.transfer.close()
        else:
            self._check()

    def not_made(self, num_blocks: int) -> None:
        """Nobody computes the rest: only the first blocks can be had."""
        self._is_made = True
        self.has_failed = True
        self.ready_blocks = min(self.ready_blocks, num_blocks)
        crossing = self._crossings.pop(self._maker or "", None)
        if crossing is not None:
            crossing.abandon()
        self._check()

    def abandon(self) -> None:
        """End without a word; idempotent."""
        self._is_over = True
        for crossing in self._crossings.values():
            crossing.abandon()
        self._crossings.clear()

    def _lacks(self, first_missing: int, before: int) -> None:
        if first_missing < before:
            self.ready_blocks = min(self.ready_blocks, first_missing)

    def _ask(self, source: Source) -> None:
        dc = str(source.dc)
        there = self._places.pools[dc].num_leading(self._keys[: source.end])
        if dc != self._maker:
            self._lacks(max(there, source.first), before=source.end)
        crossing = self._crossings.get(dc) or self._open(dc)
        is_all = dc != self._maker
        num_blocks = max(0, min(there, source.end) - source.first)
        if not is_all and not self._places.scenario.streamed:
            num_blocks = 0  # its worker sends everything at the end
        num_bytes = self._places.blocks_bytes(num_blocks)

        def reached() -> None:
            crossing.transfer.offer(num_bytes)
            if is_all:
                crossing.transfer.close()

        self._places.loop.after(self._places.fabric.ask_s(dc, self._home), reached)

    def _open(self, dc: str) -> WatchedTransfer:
        crossing = self._crossings[dc] = self._places.fabric.open(
            dc, self._home, lambda: self._arrived(dc), lambda: self._failed(dc)
        )
        return crossing

    def _arrived(self, dc: str) -> None:
        self._crossings.pop(dc, None)
        self._check()

    def _failed(self, dc: str) -> None:
        self._crossings.pop(dc, None)
        self.has_failed = True
        self.ready_blocks = min(self.ready_blocks, self._places.pools[self._home].num_leading(self._keys))
        if dc == self._maker:
            self._is_made = True
        self._check()

    def _check(self) -> None:
        if self._is_made and not self._crossings and not self._is_over:
            self._is_over = True
            self._on_complete()
