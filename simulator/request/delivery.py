"""KV on its way to the pool of decode's datacenter: what is cached elsewhere at once, the rest as it is computed."""

from collections.abc import Callable, Sequence

from shared.ids import BlockKey
from shared.kv.entries import Source
from simulator.network.watched import WatchedTransfer
from simulator.places import Places
from simulator.request.lateness import FetchPatience


class KvDelivery:
    """One transfer from each datacenter that has, or will have, blocks of a prompt.

    `on_complete` is called once, when all of them are over and whoever computes blocks, if somebody does, has ended; or
    when that is late. `ready_blocks` then says how many leading blocks have come.
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
        self._patience: FetchPatience | None = None
        self._expected_bytes = 0.0
        self._arrived_bytes = 0.0  # of transfers that are over, and of what was computed at home
        self._from_maker: list[tuple[float, int]] = []  # once so many bytes are here, so many leading tokens are
        self.ready_blocks = len(keys)
        self.present_blocks = 0  # leading blocks that home had at the beginning
        self.has_failed = False
        self.is_late = False

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

    def wait_for(self, patience_s: float | None) -> None:
        """Give up what is late: see `FetchPatience`. Everything is expected by now."""
        if patience_s is not None and not self._is_over:
            self._patience = FetchPatience(self._places.loop, patience_s, self._left_bytes, self._late)

    def expect(self, num_bytes: float) -> None:
        """Count on so many bytes more, which somebody computes."""
        self._expected_bytes += num_bytes

    def will_bring(self, num_bytes: float, end_token: int) -> None:
        """Note that the maker's next so many bytes complete the prompt's KV up to a token."""
        before = self._from_maker[-1][0] if self._from_maker else 0.0
        self._from_maker.append((before + num_bytes, end_token))

    def computed_at_home(self, num_bytes: float, end_token: int) -> None:
        """Note what a prefill worker of home has computed."""
        self._arrived_bytes += num_bytes
        self._from_maker.append((0.0, end_token))

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
        self._end()

    def _lacks(self, first_missing: int, before: int) -> None:
        if first_missing < before:
            self.ready_blocks = min(self.ready_blocks, first_missing)

    def _ask(self, source: Source) -> None:
        dc = str(source.dc)
        there = self._places.pools[dc].num_leading(self._keys[: source.end])
        is_all = dc != self._maker
        if is_all:
            self._lacks(max(there, source.first), before=source.end)
        crossing = self._crossings.get(dc) or self._open(dc)
        num_blocks = max(0, min(there, source.end) - source.first)
        if not is_all and not self._places.scenario.streamed:
            num_blocks = 0  # its worker sends everything at the end
        num_bytes = self._places.blocks_bytes(num_blocks)
        self._expected_bytes += num_bytes
        if not is_all and num_blocks:
            self.will_bring(num_bytes, (source.first + num_blocks) * self._places.kv.block_tokens)

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
        crossing = self._crossings.pop(dc, None)
        if crossing is not None:
            self._arrived_bytes += crossing.transfer.num_offered
        self._check()

    def _failed(self, dc: str) -> None:
        self._crossings.pop(dc, None)
        self.has_failed = True
        self.ready_blocks = min(self.ready_blocks, self._places.pools[self._home].num_leading(self._keys))
        if dc == self._maker:
            self._is_made = True
        self._check()

    def _left_bytes(self) -> float:
        carried = sum(crossing.transfer.num_carried for crossing in self._crossings.values())
        return max(0.0, self._expected_bytes - self._arrived_bytes - carried)

    def _late(self) -> None:
        """Keep the blocks that are complete; decode computes the rest."""
        crossing = self._crossings.get(self._maker or "")
        num_bytes = crossing.transfer.num_carried if crossing is not None else 0.0
        complete = [end_token for mark, end_token in self._from_maker if mark <= num_bytes]
        from_maker = max(complete, default=0) // self._places.kv.block_tokens
        here = self._places.pools[self._home].num_leading(self._keys)
        self.is_late = self.has_failed = True
        self.ready_blocks = min(self.ready_blocks, max(here, from_maker))
        self._is_made = True
        self._end()
        self._check()

    def _end(self) -> None:
        if self._patience is not None:
            self._patience.end()
        for crossing in self._crossings.values():
            crossing.abandon()
        self._crossings.clear()

    def _check(self) -> None:
        if self._is_made and not self._crossings and not self._is_over:
            self._is_over = True
            self._end()
            self._on_complete()
