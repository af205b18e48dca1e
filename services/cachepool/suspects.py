"""Peers that corrupt what they send, in memory or on the way: found out by a second failure, left alone for a while."""

from collections.abc import Callable

SUSPECT_S = 60.0
"""How long nothing is pulled from a suspect. A node that was replaced under its address is asked again after that."""


class Suspects:
    """Remembers who sent one entry corrupt twice. Pure, with a clock; holds an address only while it is suspect."""

    def __init__(self, clock: Callable[[], float], suspect_s: float = SUSPECT_S) -> None:
        self._clock = clock
        self._suspect_s = suspect_s
        self._until: dict[str, float] = {}

    def accuse(self, address: str) -> bool:
        """Make a peer suspect from now on; True when it was not yet."""
        is_new = not self.is_suspect(address)
        self._until[address] = self._clock() + self._suspect_s
        return is_new

    def is_suspect(self, address: str) -> bool:
        until = self._until.get(address)
        if until is None:
            return False
        if until > self._clock():
            return True
        del self._until[address]
        return False
