"""How fast a link is, judged only by the time in which there was something to carry. Pure."""

import math
from collections.abc import Callable, Hashable

from services.cachepool.links.recent import Recent, agree
from shared.measuring.rates import MeanRate

MEMORY_S = 5.0
"""What was seen this many seconds of carrying ago weighs 1/e of what is seen now."""

WINDOW_S = 0.75
"""Seconds of carrying that show what a link is now. One that falls to a tenth is known as such after so many; a pause
of a third of them, as one lost packet makes, is within what agrees."""

EVIDENCE_S = 0.5
"""Fewer seconds of carrying contradict nothing."""

LEAST_BYTES_PER_S = 1.0
"""Of a link that is known: 0 says that it is not."""

UNCLAIMED_S = 0.1
"""How much later than it was received a batch may be counted without losing any of its time."""


class Goodput:
    """Payload bytes per second over the busy time of a link alone: a mean that forgets when the link has changed.

    The mean is exponentially weighted. When the last `WINDOW_S` of carrying do not agree with it, they take its place:
    what was before belongs to another state of the link. (An agile and a stable filter, as in M. Kim and B. Noble,
    "Mobile network estimation", MobiCom 2001.)

    A link is busy while any of its streams is *owed* something: more was ready behind its last message; or while a
    connection is in the midst of a batch. Time in which the far end had nothing to send (prefill was still computing,
    say) says nothing about the link. While something is owed and nothing comes, the figure falls.
    """

    def __init__(self, clock: Callable[[], float], memory_s: float = MEMORY_S) -> None:
        self._clock = clock
        self._memory_s = memory_s
        self._carrying: set[Hashable] = set()
        self._owed: set[Hashable] = set()
        self._receiving: dict[Hashable, Callable[[], float]] = {}
        self._seen_at = clock()
        self._last_bytes = 0
        self._is_known = False
        self._unclaimed_s = 0.0
        self._claimed_at = -math.inf
        self._usual = MeanRate(memory_s)
        self._mean = MeanRate(memory_s)
        self._recent = Recent(WINDOW_S)

    @property
    def bytes_per_s(self) -> float:
        """0 until the link was busy for the first time.

        While something is owed, no more than what has come within the window and one more message would make: no
        larger part of it can be on its way.
        """
        if not self._is_known:
            return 0.0
        known = max(self._mean.per_s, LEAST_BYTES_PER_S)
        num_bytes, seconds = self._recent.before(self._pending_s())
        if seconds < EVIDENCE_S:
            return known
        possible = max((num_bytes + self._last_bytes) / seconds, LEAST_BYTES_PER_S)
        return known if possible >= known or agree(possible, known) else possible

    @property
    def usual_bytes_per_s(self) -> float:
        """Return the mean that nothing makes forget: for who must not take a moment's silence for the link's speed."""
        return self._usual.per_s

    @property
    def is_sure(self) -> bool:
        """Whether the figure stands on enough seconds of carrying to contradict it."""
        return self._recent.before(0.0)[1] >= EVIDENCE_S

    @property
    def num_carrying(self) -> int:
        """The streams that share the link: their last messages had something in them, so that the next may be on its
        way.
        """
        return len(self._carrying)

    def arrived(self, stream: Hashable, num_bytes: int, *, more: bool) -> None:
        """A message of a stream is here. The first after a pause does not count: nobody knows when it set out."""
        passed_s = self._pass_time()
        if self._owed:
            self._add(num_bytes, passed_s)
        _put(self._carrying, stream, is_in=bool(num_bytes))
        _put(self._owed, stream, is_in=more)

    def carried(self, stream: Hashable, num_bytes: int, seconds: float) -> None:
        """So many bytes have come, in time in which their connections were busy: who receives them has measured it.

        Time that two peers' connections were busy with at once counts once.
        """
        now = self._clock()
        self._unclaimed_s = min(self._unclaimed_s + now - self._claimed_at, seconds + UNCLAIMED_S)
        self._claimed_at = now
        counted_s = min(seconds, self._unclaimed_s)
        self._unclaimed_s -= counted_s
        self._add(num_bytes, counted_s)
        _put(self._carrying, stream, is_in=bool(num_bytes))

    def watch(self, stream: Hashable, receiving_s: Callable[[], float]) -> None:
        """Ask, until the stream is over, for the time that its connections are busy with what has not come yet."""
        self._receiving[stream] = receiving_s

    def probed(self, rate: float, seconds: float) -> None:
        """Believe what probes of the pausing link have found, and nothing that was seen before.

        `rate` in bytes per second; it weighs like so many `seconds` of carrying.
        """
        self._is_known = True
        self._restart(rate * seconds, seconds)
        self._recent = Recent(WINDOW_S)
        self._recent.add(rate * seconds, seconds)

    def ended(self, stream: Hashable) -> None:
        """A stream is over, whatever it was owed."""
        passed_s = self._pass_time()
        if self._owed:
            self._add(0, passed_s)
        self._owed.discard(stream)
        self._carrying.discard(stream)
        self._receiving.pop(stream, None)

    def _pending_s(self) -> float:
        owed_s = self._clock() - self._seen_at if self._owed else 0.0
        return max([owed_s, *(receiving_s() for receiving_s in self._receiving.values())])

    def _pass_time(self) -> float:
        """Return the seconds since this was called before."""
        now = self._clock()
        passed_s, self._seen_at = max(0.0, now - self._seen_at), now
        return passed_s

    def _add(self, num_bytes: int, seconds: float) -> None:
        self._last_bytes = num_bytes or self._last_bytes
        self._is_known = self._is_known or (num_bytes > 0 and seconds > 0)
        self._usual.add(num_bytes, seconds)
        self._mean.add(num_bytes, seconds)
        self._recent.add(num_bytes, seconds)
        now_bytes, now_s = self._recent.before(0.0)
        if now_s >= EVIDENCE_S and not agree(now_bytes / now_s, self._mean.per_s):
            self._restart(now_bytes, now_s)

    def _restart(self, num_bytes: float, seconds: float) -> None:
        """Forget what the mean was made of."""
        self._mean = MeanRate(self._memory_s)
        self._mean.add(num_bytes, seconds)


def _put(streams: set[Hashable], stream: Hashable, *, is_in: bool) -> None:
    if is_in:
        streams.add(stream)
    else:
        streams.discard(stream)
