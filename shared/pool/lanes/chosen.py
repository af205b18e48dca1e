"""Which lane a process uses to a pool: the first that it may use, the pool offers, and can be had."""

import asyncio
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

from shared.errors import LaneBroken, PrfaasError
from shared.lanes.settings import LaneName, LaneSettings
from shared.lanes.shared_memory.attachment import Attachment
from shared.lanes.slots import SlotMemory
from shared.lanes.sockets.dial import dial
from shared.lanes.sockets.options import LaneOffer, LinkOptions
from shared.log import get_logger
from shared.pool.lanes.lane import Lane
from shared.pool.lanes.linked import LinkedLane
from shared.pool.lanes.mapped import MappedLane
from shared.pool.lanes.messages import IN_MESSAGES
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import CachePoolStub
from shared.rpc.client import Channels, rpc_errors
from shared.security.identity import ServiceRole, server_name

log = get_logger()

ATTACH_TIMEOUT_S = 2.0
RETRY_S = 5.0
"""How long a pool is spoken to in messages after no other lane could be had."""
MAX_POOLS = 1024


@dataclass
class _Way:
    lane: Lane = IN_MESSAGES
    retry_at: float = 0.0
    opening: "asyncio.Task[Lane] | None" = None


class PoolLanes:
    """Owns the lanes of this process, one for each pool node that it has used. Belongs to one event loop.

    A lane is opened at its first use, and again after it broke; meanwhile, and where none can be had, payloads travel
    in messages.
    """

    def __init__(
        self,
        channels: Channels,
        allowed: Sequence[LaneName],
        memory: SlotMemory | None = None,
        *,
        num_connections: int = 4,
        verifies: bool = False,
        tls: ssl.SSLContext | None = None,
        on_attached: Callable[[Attachment], None] = lambda _attachment: None,
    ) -> None:
        """`memory` is where sockets land payloads, verified if `verifies`; without it sockets are not used.

        `on_attached` is told of each pool whose memory was mapped.
        """
        self._channels = channels
        self._allowed = tuple(allowed)
        self._memory = memory
        self._num_connections = num_connections
        self._verifies = verifies
        self._tls = tls
        self._on_attached = on_attached
        self._ways: dict[str, _Way] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def to(self, address: str) -> Lane:
        """Return the lane to the pool node at `address`. Does not raise; waits for an opening at most."""
        if self._allowed == ("grpc",):
            return IN_MESSAGES
        way = self._ways.get(address)
        if way is None:
            if len(self._ways) >= MAX_POOLS:
                return IN_MESSAGES
            way = self._ways[address] = _Way()
        if way.lane is not IN_MESSAGES and not way.lane.is_broken:
            return way.lane
        if way.opening is None and monotonic() < way.retry_at:
            return IN_MESSAGES
        if way.opening is None:
            way.opening = asyncio.create_task(self._reopen(address, way), name=f"lane to {address}")
        return await asyncio.shield(way.opening)

    def receiving_s(self, address: str) -> float:
        """Return for how long the lane to a pool node has been busy with what has not come yet."""
        way = self._ways.get(address)
        return 0.0 if way is None else way.lane.receiving_s

    async def prepare(self, address: str) -> None:
        """Open the lane that the first request will use."""
        await self.to(address)

    def broke(self, address: str, lane: Lane) -> None:
        """Give a lane up that failed a stream: the next ones speak in messages for a while."""
        way = self._ways.get(address)
        if way is not None and way.lane is lane:
            way.lane, way.retry_at = IN_MESSAGES, monotonic() + RETRY_S
            closing = asyncio.create_task(lane.close(), name=f"closing a lane to {address}")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close every lane; idempotent."""
        ways, self._ways = list(self._ways.values()), {}
        if self._closing:
            await asyncio.wait(self._closing)
        for way in ways:
            if way.opening is not None:
                way.opening.cancel()
                await asyncio.wait({way.opening})
            await way.lane.close()

    async def _reopen(self, address: str, way: _Way) -> Lane:
        broken, way.lane = way.lane, IN_MESSAGES
        try:
            await broken.close()
            way.lane = await self._open(address)
            way.retry_at = monotonic() + RETRY_S
            log.info("lane_chosen", pool=address, lane=way.lane.name)
        finally:
            way.opening = None
        return way.lane

    async def _open(self, address: str) -> Lane:
        try:
            with rpc_errors(address):
                offered = await CachePoolStub(self._channels.get(address)).Lanes(
                    pb.LanesRequest(), timeout=ATTACH_TIMEOUT_S
                )
        except PrfaasError as error:  # the pool is away, of a release that knows no lanes, or refuses us
            log.info("lanes_not_offered", pool=address, error=str(error), code=error.code)
            return IN_MESSAGES
        for name in self._allowed:
            try:
                if name == "shared_memory" and offered.HasField("shared_memory"):
                    attachment = await Attachment.attach(offered.shared_memory, ATTACH_TIMEOUT_S)
                    self._on_attached(attachment)
                    return MappedLane(attachment)
                if name == "socket" and offered.HasField("socket") and self._memory is not None:
                    link = await dial(
                        address.rpartition(":")[0].strip("[]"),  # of an IPv6 address
                        LaneOffer(offered.socket.port, offered.socket.token, offered.socket.max_connections),
                        self._memory,
                        self._tls,
                        self._num_connections,
                        timeout_s=ATTACH_TIMEOUT_S,
                        options=LinkOptions(verify=self._verifies),
                        server_name=server_name(ServiceRole.CACHEPOOL, self._channels.expected_dc(address)),
                    )
                    return LinkedLane(link, verifies=self._verifies)
            except LaneBroken as error:
                log.info("lane_not_to_be_had", pool=address, lane=name, error=str(error))
            if name == "grpc":
                break
        return IN_MESSAGES


def engine_lanes(
    settings: LaneSettings,
    channels: Channels,
    tls: ssl.SSLContext | None = None,
    on_attached: Callable[[Attachment], None] = lambda _attachment: None,
) -> PoolLanes:
    """Return the lanes of an engine, which verifies what it reads from any."""
    memory = SlotMemory(settings.lane_bytes, shared=False)
    return PoolLanes(
        channels,
        settings.lanes,
        memory,
        num_connections=settings.lane_connections,
        tls=tls,
        on_attached=on_attached,
    )
