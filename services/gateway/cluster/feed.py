"""Keeps registry and index true: events from the bus, and a snapshot from every pool whose events cannot be trusted."""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing

import grpc

from services.gateway.cluster.registry import Registry
from services.gateway.cluster.view import no_decode_worker
from services.gateway.placement.index import PlacementIndex
from services.gateway.placement.room import make_room
from shared.bus.events import (
    TOPIC_PLACEMENT,
    LoadEvent,
    MembershipEvent,
    PlacementEvent,
    decode_event,
)
from shared.bus.kafka import Record
from shared.bus.mirrors import original_name
from shared.errors import PrfaasError
from shared.ids import Epoch, WorkerId
from shared.log import get_logger
from shared.pool.admin import PoolAdmin
from shared.rpc.client import Channels
from shared.service.health import Health

log = get_logger()

TICK_S = 0.5
PAUSE_S = 0.05  # between rounds of snapshots: a pool that does not answer is not asked at every event
BREATH_S = 0.002
"""How long events may come one after the other: the bus hands over hundreds at once, and requests wait meanwhile."""

DECODE_CONDITION = "decode_worker"


class Feed:
    """The only writer of registry and index, apart from what attempts correct."""

    def __init__(
        self,
        index: PlacementIndex,
        registry: Registry,
        channels: Channels,
        health: Health,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._index = index
        self._registry = registry
        self._channels = channels
        self._pools = PoolAdmin(channels)
        self._health = health
        self._clock = clock
        self._wake = asyncio.Event()
        self._room_wanted = asyncio.Event()
        self._breathe_at = 0.0

    async def take(self, record: Record) -> None:
        """Handle one record of any topic. Raises `BadEvent`, which the consumer counts and skips."""
        event = decode_event(record.topic, record.value)
        if isinstance(event, PlacementEvent):
            await self._place(event)
        elif isinstance(event, MembershipEvent):
            self._take_membership(event)
        elif isinstance(event, LoadEvent):
            self._registry.apply_load(event, self._clock())

    def reset(self, topic: str) -> None:
        """The broker has lost or replaced a topic: placements may have gone by unseen."""
        if original_name(topic, (TOPIC_PLACEMENT,)) == TOPIC_PLACEMENT:
            self._index.doubt_all()
            self._wake.set()

    async def run(self) -> None:
        """Take snapshots, make the index room and keep the health condition, for ever; meant for `background()`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(make_room(self._index, self._room_wanted))

    async def _place(self, event: PlacementEvent) -> None:
        """Apply an event; what it says of blocks waits for more until the loop is free, or was busy for a while."""
        index = self._index
        if not index.has_waiting:
            asyncio.get_running_loop().call_soon(self._settle)
        index.apply(event, self._clock())
        self._look_for_room()
        if index.is_stale(event.holder):
            self._wake.set()
        now = self._clock()
        if now >= self._breathe_at:
            await asyncio.sleep(0)
            self._breathe_at = self._clock() + BREATH_S

    def _settle(self) -> None:
        self._index.settle()
        self._look_for_room()

    def _look_for_room(self) -> None:
        if self._index.room_wanted is not None:
            self._room_wanted.set()

    async def _follow(self) -> None:
        while True:
            self._wake.clear()
            self._look_at_channels()
            self._registry.lose_silent()
            self._report_health()
            await self._refresh()
            await asyncio.sleep(PAUSE_S)
            try:
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _take_membership(self, event: MembershipEvent) -> None:
        is_new = self._registry.apply_membership(event, self._clock())
        self._channels.expect(event.address, event.dc)
        if event.role == "cachepool":
            if event.left:
                self._index.forget(event.worker)
            elif is_new:
                self._index.doubt(event.worker)
            if self._index.has_stale:
                self._wake.set()
        self._report_health()

    def _look_at_channels(self) -> None:
        """Drop processes from plans that are gone or hang, and take them back, before silence on the bus shows it."""
        for worker, address in self._registry.addresses().items():
            state = self._channels.get(address).get_state(try_to_connect=True)
            if state in (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE):
                self._registry.set_reachable(worker, state is grpc.ChannelConnectivity.READY)

    def _report_health(self) -> None:
        view = self._registry.view()
        detail = ", ".join(member.worker for member in view.decode) or no_decode_worker(view)
        self._health.set(DECODE_CONDITION, bool(view.decode), detail)

    async def _refresh(self) -> None:
        """Ask every stale pool that can be asked for its snapshot, all at once."""
        pools = self._registry.view().pools
        wanted = [(holder, pools[holder].address) for holder in self._index.stale() if holder in pools]
        async with asyncio.TaskGroup() as group:
            for holder, address in wanted:
                group.create_task(self._take_snapshot(holder, address))

    async def _take_snapshot(self, holder: WorkerId, address: str) -> None:
        incoming = self._index.open_snapshot(holder)
        epoch, sequence = Epoch(0), 0
        try:
            async with aclosing(self._pools.snapshot(holder, address)) as parts:
                async for part in parts:
                    epoch, sequence = part.epoch, part.sequence
                    incoming.add(part.stored)
                    self._look_for_room()
            self._index.finish_snapshot(incoming, epoch, sequence)
        except PrfaasError as error:
            log.warning("snapshot_failed", holder=holder, error=str(error))
        else:
            log.info("snapshot_taken", holder=holder, num_blocks=incoming.num_blocks, sequence=sequence)
        finally:
            incoming.close()
