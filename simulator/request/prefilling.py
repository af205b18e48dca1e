"""The prefill of one request: its cached prefix comes to the worker, the rest is computed and sent as it is."""

from collections.abc import Callable, Sequence
from functools import partial

from shared.ids import BlockKey
from shared.kv.entries import Source
from simulator.engines.work import PromptJob
from simulator.gateways.routes import SimRoute
from simulator.network.watched import WatchedTransfer
from simulator.places import Places
from simulator.request.delivery import KvDelivery
from simulator.seats import EngineSeat


class PromptPrefill:
    """Computes a prompt's first `end` tokens on the route's worker, or on a spare of it when that is lost.

    `on_over(computed_tokens)` is called once, unless it is withdrawn; `on_last_step()` when the first layer of the last
    step has come to decode's datacenter, if its link has nothing else to carry.
    """

    def __init__(
        self,
        places: Places,
        route: SimRoute,
        keys: Sequence[BlockKey],
        delivery: KvDelivery,
        on_over: Callable[[int], None],
        on_lost: Callable[[str], None],
        on_last_step: Callable[[], None],
    ) -> None:
        assert route.prefill is not None
        self._places = places
        self._keys = keys
        self._end = route.ready_tokens
        self._sources = route.prefill_sources
        self._home = places.dc_of(route.decode)
        self._delivery = delivery
        self._on_over = on_over
        self._on_lost = on_lost
        self._on_last_step = on_last_step
        self._workers = [route.prefill, *route.prefill_spares]
        self._dc = places.dc_of(route.prefill)
        self._pulls: dict[int, WatchedTransfer] = {}
        self._pulled_blocks = 0
        self._first_hole = len(keys)
        self._seat: EngineSeat | None = None
        self._work: PromptJob | None = None
        self._sent_tokens = 0  # of those, all that come before are on their way or were never missing
        self._num_computed = 0
        self._is_withdrawn = False

    def begin(self) -> None:
        """Call the worker; have its pool pull what other datacenters have cached, then queue."""
        if self._places.scenario.streamed:
            here = self._places.kv.block_tokens * self._delivery.present_blocks
            self._sent_tokens = max(self._cached_tokens(), min(self._end, here))
        self._delivery.expect(self._bytes(self._sent_tokens, self._end, is_last=self._sent_tokens < self._end))
        call_s = self._places.scenario.calls.call_s + self._places.fabric.ask_s(self._home, self._dc)
        self._places.loop.after(call_s, self._called)

    def _called(self) -> None:
        if self._is_withdrawn:
            return
        for source in self._sources:
            self._pull(source)
        if not self._pulls:
            self._queue()

    def withdraw(self) -> None:
        """Stop; idempotent. A step that has begun is computed all the same."""
        self._is_withdrawn = True
        for pull in self._pulls.values():
            pull.abandon()
        self._pulls.clear()
        self._workers.clear()
        self._leave()

    def _pull(self, source: Source) -> None:
        dc = str(source.dc)
        there = min(source.end, self._places.pools[dc].num_leading(self._keys[: source.end]))
        num_bytes = self._places.blocks_bytes(max(0, there - source.first))
        number = len(self._pulls)
        over, failed = partial(self._pulled, number, source, there), partial(self._pulled, number, source, 0)
        pull = self._pulls[number] = self._places.fabric.open(dc, self._dc, over, failed)

        def reached() -> None:
            pull.transfer.offer(num_bytes)
            pull.transfer.close()

        self._places.loop.after(self._places.fabric.ask_s(dc, self._dc), reached)

    def _pulled(self, number: int, source: Source, end: int) -> None:
        """Note that a source has sent its blocks up to `end`; a prefix is worth no more than its first hole."""
        del self._pulls[number]
        self._pulled_blocks = max(self._pulled_blocks, source.end)
        if end < source.end:
            self._first_hole = min(self._first_hole, max(source.first, end))
        if not self._pulls:
            self._places.pools[self._dc].put(self._keys[: min(self._pulled_blocks, self._first_hole)])
            self._queue()

    def _queue(self) -> None:
        """Have the next worker that is there compute it; decode, if there is none."""
        while self._workers:
            seat = self._places.seat(self._workers.pop(0))
            if seat.is_present:
                self._seat = seat
                work = self._work = PromptJob(self._end, self._opened, self._computed, self._stepped)
                work.expected_first = self._cached_tokens()
                seat.on_lost[self._lost] = None
                seat.prefill.add(work)
                return
            self._on_lost(seat.name)
        self._delivery.not_made(self._cached_tokens() // self._places.kv.block_tokens)
        self._on_over(self._num_computed)

    def _cached_tokens(self) -> int:
        return min(self._end, self._places.kv.block_tokens * self._places.pools[self._dc].num_leading(self._keys))

    def _opened(self) -> int:
        """Say where to begin; send what has been cached since this request set out."""
        first = self._cached_tokens()
        self._places.pools[self._dc].use(self._keys[: first // self._places.kv.block_tokens])
        self._num_computed += self._end - first
        if first > self._sent_tokens and self._places.scenario.streamed:
            self._send(self._sent_tokens, first, is_last=first == self._end)
        return first

    def _stepped(self, first: int, end: int, end_s: float) -> None:
        """Send a chunk's KV by groups of layers, evenly over its step, of what has not been sent before."""
        scenario, loop, layers = self._places.scenario, self._places.loop, self._places.kv.layers
        if not self._delivery.crosses and first > self._sent_tokens:  # the steps before have computed it
            self._delivery.computed_at_home(self._bytes(self._sent_tokens, first, is_last=False), first)
            self._sent_tokens = first
        if end == self._end and scenario.streamed:
            self._await_first_layer(end_s)
        first, is_last = max(first, self._sent_tokens), end == self._end
        if not self._delivery.crosses or not scenario.streamed or first >= end:
            return
        self._sent_tokens = end
        num_bytes = self._bytes(first, end, is_last=is_last)
        self._delivery.will_bring(num_bytes, end)
        piece, start_s = num_bytes / layers, loop.now_s
        work = self._work

        def ready() -> None:
            if self._work is work:
                self._delivery.offer(piece)

        for group in range(1, layers):
            loop.at(start_s + (end_s - start_s) * group / layers, ready)
        loop.at(end_s, ready)

    def _await_first_layer(self, end_s: float) -> None:
        """Say when decode has the first layer of the last step, which ends then: it begins with the tail."""
        loop, work = self._places.loop, self._work
        step_s, way_s = end_s - loop.now_s, self._places.fabric.ask_s(self._dc, self._home)

        def landed() -> None:
            if self._work is work and not self._is_withdrawn:
                self._on_last_step()

        loop.after(step_s / self._places.kv.layers + way_s, landed)

    def _computed(self) -> None:
        self._places.pools[self._dc].put(self._keys[: self._end // self._places.kv.block_tokens])
        if self._delivery.crosses and self._sent_tokens < self._end:
            self._send(self._sent_tokens, self._end, is_last=True)
        group = self._seat.group if self._seat else None
        self._leave(keep_work=True)
        lag_s = self._places.scenario.calls.hand_over_s
        if group is not None:
            last_tokens = min(group.step_tokens, self._num_computed) / self._places.kv.layers
            lag_s += self._places.kv.bytes_per_token * last_tokens / group.hand_over_bytes_per_s
        # The last pieces are offered at this very time, by timers that were set before this one.
        self._places.loop.after(lag_s, self._made)

    def _made(self) -> None:
        self._delivery.made()
        self._on_over(self._num_computed)

    def _send(self, first: int, end: int, *, is_last: bool) -> None:
        self._sent_tokens = max(self._sent_tokens, end)
        if self._delivery.crosses:
            num_bytes = self._bytes(first, end, is_last=is_last)
            self._delivery.will_bring(num_bytes, end)
            self._delivery.offer(num_bytes)

    def _bytes(self, first: int, end: int, *, is_last: bool) -> float:
        kv = self._places.kv
        return kv.bytes_per_token * max(0, end - first) + kv.fixed_bytes * is_last

    def _lost(self) -> None:
        assert self._seat is not None
        self._on_lost(self._seat.name)
        self._leave()
        self._queue()

    def _leave(self, *, keep_work: bool = False) -> None:
        if self._seat is not None:
            self._seat.on_lost.pop(self._lost, None)
            self._seat = None
        if self._work is not None and not keep_work:
            self._work.withdraw()
            self._work = None
