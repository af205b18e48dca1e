"""Links between datacenters as fluids: connections share a capacity equally, and wait when their source has nothing."""

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from simulator.events import EventLoop, SimTimer
from simulator.network.capacity import CapacityProcess, CapacityStep, ScheduledCapacity, mathis_bytes_per_s

ROUNDING = 1e-9
"""Transfers that end within this part of the fluid's level end together."""


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """One direction between two datacenters. `connections` is what each transfer opens."""

    from_dc: str
    to_dc: str
    bytes_per_s: float
    round_trip_s: float = 0.0
    loss: float = 0.0
    connections: int = 1
    segment_bytes: int = 1448
    connection_bytes_per_s: float = math.inf  # most of one connection, whatever loss and round trip allow
    capacity: CapacityProcess = field(default_factory=ScheduledCapacity)

    @property
    def most_per_connection(self) -> float:
        """Bytes/s that a connection carries when nobody shares the link."""
        tcp = mathis_bytes_per_s(self.segment_bytes, self.round_trip_s, self.loss)
        return min(tcp, self.connection_bytes_per_s)


class Transfer:
    """Bytes on their way over one link. Its source may offer them little by little; see `SharedLink.open`."""

    __slots__ = ("_link", "is_closed", "is_over", "level", "num_offered", "on_drained", "version")

    def __init__(self, link: "SharedLink", on_drained: Callable[[], None]) -> None:
        self._link = link
        self.on_drained = on_drained
        self.level = 0.0  # of the link's fluid, at which all offered bytes have gone
        self.num_offered = 0.0
        self.version = 0
        self.is_closed = False  # nothing more will be offered
        self.is_over = False

    @property
    def num_carried(self) -> float:
        """Bytes that the link has carried of those offered."""
        return self.num_offered - self._link.left_bytes(self)

    def offer(self, num_bytes: float) -> None:
        """Let the source have so many more bytes."""
        self._link.offer(self, num_bytes)

    def close(self) -> None:
        """Say that nothing more will be offered: the transfer ends when all has arrived."""
        self._link.close(self)

    def abandon(self) -> None:
        """End without arriving; idempotent."""
        self._link.abandon(self)


class SharedLink:
    """Max-min fair sharing among the connections of one link, exactly, in O(log n) for each change.

    Connections of a link have the same limit (loss, round trip), so that max-min fairness gives each of them the same
    rate: `min(limit, capacity / connections)`. One number, the fluid's *level*, therefore tells the bytes that any
    connection has carried, and a transfer ends when the level reaches a mark that is known when it sets out.
    A transfer whose source has nothing leaves the sharing until it has something again.
    """

    def __init__(self, spec: LinkSpec, loop: EventLoop, seed: str) -> None:
        self.spec = spec
        self.crossed_bytes = 0.0
        self.busy_s = 0.0  # time in which some transfer had something to carry
        self._loop = loop
        self._limit = spec.most_per_connection
        self._capacity = spec.bytes_per_s
        self._level = 0.0
        self._level_at_s = loop.now_s
        self._flowing: dict[Transfer, None] = {}
        self._marks: list[tuple[float, int, int, Transfer]] = []
        self._num_marks = 0
        self._owed_bytes = 0.0
        self._timer: SimTimer | None = None
        self._steps = spec.capacity.steps(seed)
        self._await_step(self._steps)

    @property
    def rate_per_connection(self) -> float:
        """Bytes/s that each connection carries now."""
        num = len(self._flowing) * self.spec.connections
        return min(self._limit, self._capacity / num) if num else 0.0

    @property
    def capacity_bytes_per_s(self) -> float:
        return self._capacity

    @property
    def num_flowing(self) -> int:
        """Transfers that have something to carry."""
        return len(self._flowing)

    @property
    def backlog_bytes(self) -> float:
        """Offered and not carried yet."""
        self._advance()
        return max(0.0, self._owed_bytes)

    def open(self, on_arrived: Callable[[], None]) -> Transfer:
        """Begin a transfer of nothing yet. `on_arrived` is called once it is closed and its last byte has arrived, half
        a round trip after that has left.
        """
        return Transfer(self, lambda: self._arrive(on_arrived))

    def offer(self, transfer: Transfer, num_bytes: float) -> None:
        if num_bytes <= 0 or transfer.is_over:
            return
        self._advance()
        start = transfer.level if transfer in self._flowing else self._level
        transfer.level = start + num_bytes / self.spec.connections
        transfer.num_offered += num_bytes
        self._owed_bytes += num_bytes
        self._flowing[transfer] = None
        self._mark(transfer)
        self._schedule()

    def close(self, transfer: Transfer) -> None:
        if transfer.is_closed or transfer.is_over:
            return
        transfer.is_closed = True
        if transfer not in self._flowing:
            transfer.is_over = True
            transfer.on_drained()

    def abandon(self, transfer: Transfer) -> None:
        if transfer.is_over:
            return
        self._advance()
        transfer.is_over = True
        if self._flowing.pop(transfer, self) is None:
            self._owed_bytes -= max(0.0, transfer.level - self._level) * self.spec.connections
            self._schedule()

    def left_bytes(self, transfer: Transfer) -> float:
        """Return what was offered and not carried yet."""
        if transfer not in self._flowing:
            return 0.0
        self._advance()
        return max(0.0, transfer.level - self._level) * self.spec.connections

    def sync(self) -> None:
        """Bring the counters up to now."""
        self._advance()

    def _arrive(self, on_arrived: Callable[[], None]) -> None:
        self._loop.after(self.spec.round_trip_s / 2, on_arrived)

    def _mark(self, transfer: Transfer) -> None:
        self._num_marks += 1
        transfer.version = self._num_marks
        heapq.heappush(self._marks, (transfer.level, self._num_marks, transfer.version, transfer))

    def _advance(self) -> None:
        """Move the fluid up to now."""
        passed_s = self._loop.now_s - self._level_at_s
        if passed_s > 0:
            if self._flowing:
                rise = self.rate_per_connection * passed_s
                num_bytes = rise * self.spec.connections * len(self._flowing)
                self._level += rise
                self.crossed_bytes += num_bytes
                self._owed_bytes -= num_bytes
                self.busy_s += passed_s
            self._level_at_s = self._loop.now_s

    def _schedule(self) -> None:
        """Wake up when the next transfer has carried all it was offered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._marks and not self._is_current(self._marks[0]):
            heapq.heappop(self._marks)
        rate = self.rate_per_connection
        if self._marks and rate > 0:
            self._timer = self._loop.after(max(0.0, self._marks[0][0] - self._level) / rate, self._drain)

    def _is_current(self, mark: tuple[float, int, int, Transfer]) -> bool:
        _, _, version, transfer = mark
        return transfer.version == version and transfer in self._flowing

    def _drain(self) -> None:
        self._advance()
        self._level = max(self._level, self._marks[0][0])
        limit = self._level * (1 + ROUNDING)
        drained = []
        while self._marks and self._marks[0][0] <= limit:
            mark = heapq.heappop(self._marks)
            if self._is_current(mark):
                drained.append(mark[3])
        for transfer in drained:
            del self._flowing[transfer]
        if not self._flowing:
            self._owed_bytes = self._level = 0.0  # no rounding is carried on, nor do levels grow for ever
        self._schedule()
        for transfer in drained:
            if transfer.is_closed:
                transfer.is_over = True
                transfer.on_drained()

    def _await_step(self, steps: Iterator[CapacityStep]) -> None:
        step = next(steps, None)
        if step is not None:
            self._loop.at(step.at_s, lambda: self._change(step.share))

    def _change(self, share: float) -> None:
        self._advance()
        self._capacity = self.spec.bytes_per_s * share
        self._schedule()
        self._await_step(self._steps)
