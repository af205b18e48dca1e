"""All that a pool knows of one link from another datacenter. No I/O."""

from services.cachepool.links.goodput import Goodput
from services.cachepool.links.probing import Probing
from services.cachepool.links.recent import agree
from services.cachepool.links.round_trip import RoundTrip
from shared.bus.events import LinkLoad
from shared.ids import Datacenter

MAX_PEERS = 8


class IncomingLink:
    """What has come over a link and how, and whom to ask how it does when nothing comes."""

    def __init__(self, dc: Datacenter, goodput: Goodput, probing: Probing) -> None:
        self.dc = dc
        self.goodput = goodput
        self.round_trip = RoundTrip()
        self.probing = probing
        self.crossed_bytes = 0
        self._peers: list[str] = []  # who has brought something, the last one last
        self._reported: LinkLoad | None = None

    @property
    def is_pausing(self) -> bool:
        """Whether no stream had anything in its last message."""
        return not self.goodput.num_carrying

    def brought(self, address: str, num_bytes: int, now: float) -> None:
        """A peer has sent payload; `now` in seconds."""
        self.crossed_bytes += num_bytes
        self.probing.carried(now)
        if not self._peers or self._peers[-1] != address:
            self._peers = [*(peer for peer in self._peers if peer != address), address][-MAX_PEERS:]

    def peer(self, suspects: tuple[str, ...]) -> str | None:
        """Return the address to ask, None when everybody there is suspect."""
        return next((peer for peer in reversed(self._peers) if peer not in suspects), None)

    def failed(self, address: str) -> None:
        """A peer has not answered: the others are asked before it."""
        if address in self._peers:
            self._peers.remove(address)
            self._peers.insert(0, address)

    def load(self, backlog_bytes: int) -> LinkLoad:
        """Return what is reported of the link."""
        round_trip_s = self.round_trip.seconds
        return LinkLoad(self.dc, self.goodput.bytes_per_s, backlog_bytes, self.crossed_bytes, round_trip_s)

    def is_news(self) -> bool:
        """Return whether the link is not as it was when this last said so."""
        now, before = self.load(0), self._reported
        if before is not None and agree(now.goodput_bytes_per_s, before.goodput_bytes_per_s):
            return False
        self._reported = now
        return True
