"""The pool's ends of the lanes: its memory, and what leads there."""

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from services.cachepool.settings import PoolSettings
from shared.lanes.settings import MAX_CONNECTIONS
from shared.lanes.shared_memory.door import MemoryDoor
from shared.lanes.slots import SlotMemory, limit_for
from shared.lanes.sockets.server import SocketServer
from shared.security.credentials import Security


@dataclass(frozen=True)
class LaneEnds:
    """The pool's memory, and its ends of the lanes that lead there."""

    memory: SlotMemory
    door: MemoryDoor | None = None
    server: SocketServer | None = None
    tls: ssl.SSLContext | None = None  # of the links to other pools


@asynccontextmanager
async def lane_ends(settings: PoolSettings, security: Security) -> AsyncIterator[LaneEnds]:
    """Open what the settings allow of the lanes beside messages, and the memory that they lead to.

    Raises `SettingsError` when the folder of the shared memory lane is not private.
    """
    async with AsyncExitStack() as stack:
        memory = SlotMemory(limit_for(settings.pool_bytes), shared="shared_memory" in settings.lanes)
        stack.callback(memory.close)
        door = server = None
        if memory.fd is not None:
            door = MemoryDoor(memory, settings.lane_folder, max_clients=settings.max_lane_connections)
            stack.push_async_callback(door.close)
            await door.start()
        if "socket" in settings.lanes:
            server = SocketServer(
                memory,
                security.lane_server,
                max_connections=settings.max_lane_connections,
                max_connections_per_link=MAX_CONNECTIONS,
                check_peer=None if security.guard is None else security.guard.check_lane,
            )
            stack.push_async_callback(server.close)
            await server.start(settings.grpc_host, settings.lane_port)
        yield LaneEnds(memory, door, server, security.lane_client)
