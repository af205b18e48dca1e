"""Peers that corrupt what they send, or hang: found out by a second failure or by silence, left alone for a while."""

from collections.abc import Callable

CORRUPT_S = 60.0
"""How long nothing is pulled from who sent an entry corrupt twice; a node that was replaced is asked again then."""

SILENT_S = 10.0
"""The same for who fell silent: each pull that tries would cost its readers `PRFAAS_POOL_STALL_S`."""


class Suspects:
    """Remembers whom to leave alone. Pure, with a clock; holds an address only while it is suspect."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}

    def accuse(self, address: str, for_s: float) -> bool:
        """Make a peer suspect for so long at least; True when it was not yet."""
        is_new = not self.is_suspect(address)
        self._until[address] = max(self._until.get(address, 0.0), self._clock() + for_s)
        return is_new

    def addresses(self) -> tuple[str, ...]:
        """Return who is suspect now, by name."""
        return tuple(address for address in sorted(self._until) if self.is_suspect(address))

    def is_suspect(self, address: str) -> bool:
        until = self._until.get(address)
        if until is None:
            return False
        if until > self._clock():
            return True
        del self._until[address]
        return False
