"""How fast a link is, judged only by the time in which there was something to carry. Pure."""

from collections.abc import Callable, Hashable

from shared.rates import MeanRate

MEMORY_S = 5.0
"""What was seen this many seconds of carrying ago weighs 1/e of what is seen now."""


class Goodput:
    """An exponentially weighted mean of payload bytes per second, over the busy time of a link alone.

    A link is busy while any of its streams is *owed* something: more was ready behind its last message.
    Time in which the far end had nothing to send (prefill was still computing, say) says nothing about the link.
    """

    def __init__(self, clock: Callable[[], float], memory_s: float = MEMORY_S) -> None:
        self._clock = clock
        self._carrying: set[Hashable] = set()
        self._owed: set[Hashable] = set()
        self._seen_at = 0.0
        self._rate = MeanRate(memory_s)

    @property
    def bytes_per_s(self) -> float:
        """0 until the link was busy for the first time."""
        return self._rate.per_s

    @property
    def num_carrying(self) -> int:
        """The streams that share the link: their last messages had something in them, so that the next may be on its
        way.
        """
        return len(self._carrying)

    def arrived(self, stream: Hashable, num_bytes: int, *, more: bool) -> None:
        """A message of a stream is here. The first after a pause does not count: nobody knows when it set out."""
        self._pass_time()
        if self._owed:
            self._rate.add(num_bytes, 0.0)
        if num_bytes:
            self._carrying.add(stream)
        else:
            self._carrying.discard(stream)
        if more:
            self._owed.add(stream)
        else:
            self._owed.discard(stream)

    def carried(self, num_bytes: int, seconds: float) -> None:
        """So many bytes have come, in time in which the link was busy: who receives them has measured it."""
        self._rate.add(num_bytes, seconds)

    def ended(self, stream: Hashable) -> None:
        """A stream is over, whatever it was owed."""
        self._pass_time()
        self._owed.discard(stream)
        self._carrying.discard(stream)

    def _pass_time(self) -> None:
        now = self._clock()
        if self._owed and now > self._seen_at:
            self._rate.add(0.0, now - self._seen_at)
        self._seen_at = now
