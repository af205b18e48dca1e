"""What one Fetch stream does next for its reader: decided here, carried out by the servicer. No I/O."""

from typing import NamedTuple

from services.cachepool.store.subscription import Subscription
from shared.kv.entries import BlockEntries

FIRST_BATCH_BYTES = 64 * 1024
"""The first message of a stream is small: it is there within a millisecond, and its reader can begin."""


class Beat(NamedTuple):
    """Tell the far end that this pool waits too."""


class Send(NamedTuple):
    """Send what is ready. Whatever is goes at once: a batch fills only while the one before it is being sent."""

    max_bytes: int
    patience_s: float | None  # what the permit to send may take; None: any time


class Missing(NamedTuple):
    """Report entries that nobody has begun to write in time."""

    blocks: list[BlockEntries]


class Wait(NamedTuple):
    """Wait until the reader has something new."""

    limit_s: float | None  # None: however long that takes


Action = Beat | Send | Missing | Wait
_BEAT = Beat()


class Delivery:
    """Decides for one stream. Several streams may deliver for one reader: each has a silence of its own.

    `now` is in seconds of the store's clock.
    """

    def __init__(self, reader: Subscription, max_batch_bytes: int, heartbeat_s: float | None, now: float) -> None:
        """`heartbeat_s`: the longest silence of this stream; None: it may be silent for ever."""
        self._reader = reader
        self._max_batch_bytes = max_batch_bytes
        self._heartbeat_s = heartbeat_s
        self._spoke_at = now  # what wakes this stream may go out on another one, so that silence is measured here
        self._limit_bytes = min(FIRST_BATCH_BYTES, max_batch_bytes)

    def next_action(self, now: float) -> Action:
        """Return what to do now, until the reader is done. Entries of a `Missing` have left the reader."""
        patience_s = None if self._heartbeat_s is None else self._heartbeat_s - (now - self._spoke_at)
        if patience_s is not None and patience_s <= 0:
            return _BEAT
        if self._reader.has_ready:
            limit_bytes, self._limit_bytes = self._limit_bytes, self._max_batch_bytes
            return Send(limit_bytes, patience_s)
        if missing := self._reader.take_missing(now):
            return Missing(missing)
        deadline = self._reader.next_deadline()
        if deadline is None:
            return Wait(patience_s)
        left_s = max(0.0, deadline - now)
        return Wait(left_s if patience_s is None else min(left_s, patience_s))

    def spoke(self, now: float) -> None:
        """A message has left on this stream."""
        self._spoke_at = now
