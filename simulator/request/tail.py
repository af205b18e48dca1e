"""A prompt's end on decode while its KV still lands: each layer of the tail runs as soon as that layer is here."""

import math

from shared.step_profile import num_pairs
from simulator.places import Places
from simulator.seats import EngineSeat


class GatedTail:
    """Tokens `[first, end)` of a prompt, from the first layer of the last prefill step on until all layers are here.

    In the time in which no other prompt keeps decode busy, it computes the layers that have landed; the last one is
    always left. Its other prompts are not slowed by that.
    """

    def __init__(self, places: Places, seat: EngineSeat, first: int, end: int) -> None:
        self._loop = places.loop
        self._layers = places.kv.layers
        self._meter = seat.decode.meter
        self._first = first
        self._end = end
        self._tail_s = seat.engine.slowdown * seat.group.cost.step_s(end - first, num_pairs(first, end))
        self._from_s = places.loop.now_s
        self._busy_s = self._total_busy_s()
        self._num_left = end - first

    def landed(self) -> None:
        """All layers are here."""
        passed_s = self._loop.now_s - self._from_s
        idle_s = max(0.0, passed_s - (self._total_busy_s() - self._busy_s))
        done = min(1 - 1 / self._layers, idle_s / self._tail_s) if self._tail_s > 0 else 0.0
        self._num_left = max(1, math.ceil((1 - done) * (self._end - self._first)))

    def first_left(self, first: int) -> int:
        """Return from which token on decode computes, as if layers that are done were tokens that are.

        `first` is the first one whose KV decode lacks: what was done counts if that is where the tail begins.
        """
        return self._end - self._num_left if first == self._first else first

    def _total_busy_s(self) -> float:
        self._meter.read()  # brings it up to now
        return self._meter.total_busy_s
