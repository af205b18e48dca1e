"""Which parts of a range are free: first fit from its start, neighbours joined when they come back."""

from bisect import bisect_left, bisect_right


class Extents:
    """The free parts of a range, in order and never adjacent to each other. Numbers only."""

    def __init__(self, first: int, end: int) -> None:
        self.high_water = first
        """The end of the last part that was ever taken."""
        self._starts = [first] if first < end else []
        self._ends = [end] if first < end else []

    def __len__(self) -> int:
        """Return the number of parts that are free and not adjacent."""
        return len(self._starts)

    def __contains__(self, offset: int) -> bool:
        """Return whether a number lies in a free part."""
        index = bisect_right(self._starts, offset)
        return index > 0 and offset < self._ends[index - 1]

    def take(self, least: int, most: int, below: int) -> tuple[int, int] | None:
        """Take the first free part of `most` bytes that ends at `below` or before, else the largest of `least` or more.

        Returns its offset and size, or None.
        """
        best, best_size = -1, least - 1
        for index, (start, end) in enumerate(zip(self._starts, self._ends, strict=True)):
            size = min(end, below) - start
            if size > best_size:
                best, best_size = index, min(size, most)
                if size >= most:
                    break
        if best < 0:
            return None
        start = self._starts[best]
        self._starts[best] += best_size
        if self._starts[best] == self._ends[best]:
            del self._starts[best], self._ends[best]
        self.high_water = max(self.high_water, start + best_size)
        return start, best_size

    def give_back(self, start: int, num_bytes: int) -> None:
        """Undo `take`."""
        end = start + num_bytes
        index = bisect_left(self._starts, start)
        if index < len(self._starts) and self._starts[index] == end:
            end = self._ends.pop(index)
            del self._starts[index]
        if index and self._ends[index - 1] == start:
            self._ends[index - 1] = end
        else:
            self._starts.insert(index, start)
            self._ends.insert(index, end)
