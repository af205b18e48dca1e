"""How much one batch on a link holds: as much as its connection carries in a moment. Pure."""

import math

BATCH_S = 0.02
"""How long a batch may occupy its connection. What is more urgent waits for that long, and so do, at a pull's end, the
connections that have nothing left. Handing a batch over takes some tenths of a millisecond."""
MEMORY_S = 0.5
"""What was seen this many seconds of sending ago weighs 1/e of what is seen now."""
SMALLEST_BYTES = 64 * 1024
LARGEST_BYTES = 4 * 1024 * 1024


class BatchSize:
    """Learns from the batches of one stream how fast its link takes them, in time in which any is being sent."""

    def __init__(self, first_bytes: int) -> None:
        """`first_bytes` is the size until a batch was sent."""
        self._first_bytes = first_bytes
        self._num_sending = 0
        self._seen_at = 0.0
        self._bytes = 0.0
        self._seconds = 0.0

    def begun(self, now: float) -> None:
        """A batch is on its way to a connection; `now` in seconds."""
        self._pass_time(now)
        self._num_sending += 1

    def ended(self, num_bytes: int, now: float) -> None:
        """It has left; 0 bytes: it has not."""
        self._pass_time(now)
        self._num_sending -= 1
        self._bytes += num_bytes

    def limit_bytes(self, num_connections: int) -> int:
        """Return what the next batch holds where so many connections share the link."""
        if not self._bytes or not self._seconds:
            return self._first_bytes
        wanted = self._bytes / self._seconds / max(1, num_connections) * BATCH_S
        return int(min(max(wanted, SMALLEST_BYTES), LARGEST_BYTES))

    def _pass_time(self, now: float) -> None:
        if self._num_sending:
            passed_s = now - self._seen_at
            fade = math.exp(-passed_s / MEMORY_S)
            self._bytes *= fade
            self._seconds = self._seconds * fade + passed_s
        self._seen_at = now
