"""One direction of a WAN: a queue that gives frames out as late as a link with a rate and a delay would. Pure."""

from collections import deque
from dataclasses import dataclass

MIN_QUEUE_BYTES = 256 * 1024


@dataclass(frozen=True)
class Line:
    """What lies between two sites, each way."""

    delay_s: float = 0.015  # one way
    rate_bytes_per_s: float = 125e6  # with all headers, as an Ethernet of that speed would carry them
    loss: float = 0.0  # of every packet
    queue_bytes: int = 0  # what waits for the link before the next is dropped; 0: twice what fits on a round trip

    @property
    def max_queue_bytes(self) -> int:
        return self.queue_bytes or max(MIN_QUEUE_BYTES, int(4 * self.delay_s * self.rate_bytes_per_s))


@dataclass
class Direction:
    """Frames on their way from one site to another. Changing `line` applies to frames that come from then on."""

    line: Line
    frames_carried: int = 0
    bytes_carried: int = 0  # of wire
    frames_dropped: int = 0  # the queue was full

    def __post_init__(self) -> None:
        self._frames: deque[tuple[float, bytes]] = deque()  # when it is due, at the far end
        self._free_at = 0.0  # when the link has put everything on the wire

    def push(self, frame: bytes, wire_bytes: int, now: float) -> None:
        """Take a frame that takes `wire_bytes` of the link; drop it when too much waits already."""
        waiting_s = max(0.0, self._free_at - now)
        if waiting_s * self.line.rate_bytes_per_s > self.line.max_queue_bytes:
            self.frames_dropped += 1
            return
        self._free_at = now + waiting_s + wire_bytes / self.line.rate_bytes_per_s
        self._frames.append((self._free_at + self.line.delay_s, frame))
        self.frames_carried += 1
        self.bytes_carried += wire_bytes

    def pop(self, now: float) -> bytes | None:
        """Return the next frame that has arrived by now."""
        if self._frames and self._frames[0][0] <= now:
            return self._frames.popleft()[1]
        return None

    @property
    def next_due(self) -> float | None:
        return self._frames[0][0] if self._frames else None
