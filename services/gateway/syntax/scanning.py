"""Text that comes in pieces: what may turn out to be a marker, and where a JSON object ends."""

from collections.abc import Sequence


def num_undecided(text: str, markers: Sequence[str]) -> int:
    """Return the length of the longest end of `text` with which a marker begins, but is not whole."""
    longest = max((len(marker) for marker in markers), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[-length:]
        if any(marker.startswith(end) and len(marker) > length for marker in markers):
            return length
    return 0


def may_begin(text: str, markers: Sequence[str]) -> bool:
    """Return whether `text` begins one of the markers, and more text has to say whether it is it."""
    return any(len(text) < len(marker) and marker.startswith(text) for marker in markers)


class ObjectScanner:
    """Finds the end of a JSON object by its brackets. Whether it is JSON otherwise it does not see."""

    def __init__(self, depth: int = 0) -> None:
        """`depth`: brackets that are open already."""
        self._depth = depth
        self._is_in_string = False
        self._is_escaped = False

    def scan(self, text: str) -> tuple[int, bool]:
        """Take more text; return how much of it belongs to the object, and whether the object ends there."""
        for place, char in enumerate(text):
            if self._is_in_string:
                self._in_string(char)
            elif char == '"':
                self._is_in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return place + 1, True
        return len(text), False

    def _in_string(self, char: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif char == "\\":
            self._is_escaped = True
        elif char == '"':
            self._is_in_string = False
