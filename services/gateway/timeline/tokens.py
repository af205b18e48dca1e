"""When the tokens of one choice came: a bounded number of times, thinned evenly as more come."""

from array import array

MAX_TIMES = 64


class TokenTimes:
    """Keeps every time at first; when there is no room left, every second of those kept, and then as rarely as that.

    Nothing is allocated for a token: every one of a gateway passes here.
    """

    __slots__ = ("_counts", "_due", "_length", "_stride", "_times", "last_at", "num_tokens")

    def __init__(self) -> None:
        self.num_tokens = 0
        self.last_at = 0.0
        self._times = array("d", bytes(8 * MAX_TIMES))
        self._counts = array("Q", bytes(8 * MAX_TIMES))
        self._length = 0
        self._stride = 1
        self._due = 1

    def add(self, at: float, num_tokens: int) -> None:
        """Note that so many tokens have come."""
        self.num_tokens = count = self.num_tokens + num_tokens
        self.last_at = at
        if count < self._due:
            return
        if self._length == MAX_TIMES:
            self._thin()
        self._times[self._length], self._counts[self._length] = at, count
        self._length += 1
        self._due = count + self._stride

    def kept(self) -> list[tuple[float, int]]:
        """Return the times that are kept, each with the number of tokens that had come by then; the last one always."""
        found = list(zip(self._times[: self._length], self._counts[: self._length], strict=True))
        if found and found[-1][1] < self.num_tokens:
            found.append((self.last_at, self.num_tokens))
        return found

    def _thin(self) -> None:
        half = MAX_TIMES // 2
        self._times[:half] = self._times[::2]
        self._counts[:half] = self._counts[::2]
        self._length = half
        self._stride *= 2
