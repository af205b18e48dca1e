"""A TCP proxy whose connections can be broken off or fall silent, one by one."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.support.waiting import until

PIECE_BYTES = 16 * 1024
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class ProxiedConnection:
    """One connection, both ways. Once `limit` bytes have come back from the server it is silent: nothing passes."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter, limit: int | None) -> None:
        self.silent = asyncio.Event()
        self._writers = (client, server)
        self._left = limit

    async def run(self, client: asyncio.StreamReader, server: asyncio.StreamReader) -> None:
        """Pass on until either end is through or the connection was broken off."""
        ways = [asyncio.create_task(self._to_server(client)), asyncio.create_task(self._to_client(server))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self.reset()
            for writer in self._writers:
                with suppress(ConnectionError):
                    await writer.wait_closed()

    def reset(self) -> None:
        """Break it off at both ends at once."""
        for writer in self._writers:
            if not writer.is_closing():
                connected = writer.get_extra_info("socket")
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                writer.transport.abort()

    async def _to_server(self, client: asyncio.StreamReader) -> None:
        _, server = self._writers
        while (data := await client.read(PIECE_BYTES)) and not self.silent.is_set():
            server.write(data)
            await server.drain()
        if data:
            await asyncio.Event().wait()

    async def _to_client(self, server: asyncio.StreamReader) -> None:
        client, _ = self._writers
        while data := await server.read(PIECE_BYTES):
            if self._left is not None:
                data, self._left = data[: self._left], max(0, self._left - len(data))
            client.write(data)
            await client.drain()
            if self._left == 0:
                self.silent.set()
                await asyncio.Event().wait()


class Proxy:
    """Passes on what comes to `address`; connections are numbered as they come, and `limits` are theirs."""

    def __init__(self, port: int, limits: dict[int, int]) -> None:
        self.address = ""
        self.connections: list[ProxiedConnection] = []
        self._port = port
        self._limits = limits
        self._tasks: set[asyncio.Task[None]] = set()

    async def silent(self, number: int) -> ProxiedConnection:
        """Wait until a connection has fallen silent."""
        await until(lambda: len(self.connections) > number and self.connections[number].silent.is_set())
        return self.connections[number]

    def accept(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.create_task(self._pass(client_reader, client)))

    async def _pass(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        server_reader, server = await asyncio.open_connection("127.0.0.1", self._port)
        connection = ProxiedConnection(client, server, self._limits.get(len(self.connections)))
        self.connections.append(connection)
        await connection.run(client_reader, server_reader)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def proxied(port: int, limits: dict[int, int]) -> AsyncIterator[Proxy]:
    """Serve a proxy in front of a local port for as long as the context lives."""
    proxy = Proxy(port, limits)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
        await server.wait_closed()
