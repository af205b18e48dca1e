"""What the suite's processes say of themselves on the bus."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from shared.bus.events import TOPIC_LOAD, TOPIC_MEMBERSHIP, LinkLoad, LoadEvent, MembershipEvent, decode_event
from shared.bus.kafka import Bus, Record
from shared.step_profile import StepProfile

CAUGHT_UP_LIMIT_S = 20.0


class PublishedEngine(NamedTuple):
    """An engine as its events have it."""

    role: str
    dc: str
    capacity_tokens: int  # of KV
    layout_hash: str
    profile: StepProfile
    step_tokens: int
    hand_over_bytes_per_s: float  # 0: unknown


class PublishedPool(NamedTuple):
    """A pool and the links that end there."""

    dc: str
    num_bytes: int
    links: tuple[LinkLoad, ...]


@dataclass(frozen=True)
class Published:
    """Everybody, by worker."""

    engines: Mapping[str, PublishedEngine]
    pools: Mapping[str, PublishedPool]

    def engine(self, role: str, dc: str) -> PublishedEngine:
        """Return the engine of a role in a datacenter; there is one of each at most. Raises LookupError."""
        for engine in self.engines.values():
            if (engine.role, engine.dc) == (role, dc):
                return engine
        raise LookupError(f"no {role} worker has spoken in {dc}")


class PublishedNews:
    """Keeps what each process has said since `begin`, its last word before included."""

    def __init__(self) -> None:
        self._members: dict[str, MembershipEvent] = {}
        self._loads: dict[str, list[LoadEvent]] = {}

    def take(self, event: MembershipEvent | LoadEvent) -> None:
        if isinstance(event, MembershipEvent):
            self._members[str(event.worker)] = event
        else:
            self._loads.setdefault(str(event.worker), []).append(event)

    def begin(self) -> None:
        """Forget all but the last word of each."""
        self._loads = {worker: loads[-1:] for worker, loads in self._loads.items()}

    def mean(self) -> Published:
        """Return the means of what was said. Raises LookupError while an engine has not told its profile.

        A step is linear in the coefficients of a profile: their means tell what a step took on average.
        """
        engines, pools = {}, {}
        for worker, member in self._members.items():
            loads = self._loads.get(worker, [])
            if member.role == "cachepool":
                pools[worker] = PublishedPool(str(member.dc), member.capacity, _links(loads))
            else:
                engines[worker] = _engine(worker, member, loads)
        return Published(engines, pools)


def _engine(worker: str, member: MembershipEvent, loads: Sequence[LoadEvent]) -> PublishedEngine:
    profiles = [load.step_profile for load in loads if load.step_profile is not None]
    if not profiles:
        raise LookupError(f"{worker} has not told its profile")
    return PublishedEngine(
        role=member.role,
        dc=str(member.dc),
        capacity_tokens=member.capacity,
        layout_hash=str(member.layout_hash),
        profile=StepProfile(*(fmean(values) for values in zip(*profiles, strict=True))),
        # A decode worker whose batch runs may tell of smaller steps for as long.
        step_tokens=max(load.step_tokens for load in loads),
        hand_over_bytes_per_s=fmean(load.hand_over_bytes_per_s for load in loads),
    )


def _links(loads: Sequence[LoadEvent]) -> tuple[LinkLoad, ...]:
    """Return the last word on each link, with the mean of its known goodputs."""
    found: dict[str, list[LinkLoad]] = {}
    for load in loads:
        for link in load.links:
            if link.goodput_bytes_per_s > 0:
                found.setdefault(str(link.peer_dc), []).append(link)
    return tuple(
        links[-1]._replace(goodput_bytes_per_s=fmean(link.goodput_bytes_per_s for link in links))
        for links in found.values()
    )


@asynccontextmanager
async def listening(broker: str) -> AsyncIterator[PublishedNews]:
    """Listen to a broker, from the beginning of what it has, for as long as the context lives."""
    news = PublishedNews()

    async def take(record: Record) -> None:
        event = decode_event(record.topic, record.value)
        if isinstance(event, MembershipEvent | LoadEvent):
            news.take(event)

    bus = Bus(broker, "benchmark")
    consumer = bus.consumer([TOPIC_MEMBERSHIP, TOPIC_LOAD], take, from_beginning=True)
    tasks = [asyncio.create_task(run, name=name) for name, run in (("bus", bus.run()), ("news", consumer.run()))]
    try:
        async with asyncio.timeout(CAUGHT_UP_LIMIT_S):
            await consumer.caught_up.wait()
        yield news
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
