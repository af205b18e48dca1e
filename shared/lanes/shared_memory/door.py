"""Where processes of this host get the pool's memory: a Unix socket in a private folder."""

import asyncio
import contextlib
import hmac
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

from shared.errors import SettingsError
from shared.lanes.shared_memory.client import AttachedClient
from shared.lanes.shared_memory.folder import listen, open_folder, remove_stale
from shared.lanes.shared_memory.messages import HELLO, MAGIC, TOKEN_BYTES, WELCOME
from shared.lanes.slots import SlotMemory
from shared.log import get_logger
from shared.proto import prfaas_pb2 as pb

log = get_logger()

_BACKLOG = 64
_MAX_GREETINGS = 64
"""Connections that have not said their token yet; more are closed at once."""
_RETRY_S = 1.0
"""Until connections are accepted again when the process had no descriptor left."""


class MemoryDoor:
    """Owns the listening socket and the connections of all processes that are attached. Belongs to one event loop."""

    def __init__(
        self,
        memory: SlotMemory,
        folder: Path,
        *,
        max_clients: int = 256,
        max_streams: int = 4096,
        handshake_s: float = 5.0,
    ) -> None:
        """`max_streams`: of one process, which is cut when it lets go of none of so many."""
        self._memory = memory
        self._folder = folder
        self._max_clients = max_clients
        self._max_streams = max_streams
        self._handshake_s = handshake_s
        self._token = secrets.token_bytes(TOKEN_BYTES)
        self._path: Path | None = None
        self._listener: socket.socket | None = None
        self._greetings: set[_Greeting] = set()
        self._clients: dict[int, AttachedClient] = {}
        self._retry: asyncio.TimerHandle | None = None
        self._is_telling = False

    @property
    def offer(self) -> pb.SharedMemoryOffer:
        """What a process is told by gRPC, so that it can attach."""
        return pb.SharedMemoryOffer(path=str(self._path), token=self._token)

    @property
    def num_clients(self) -> int:
        return len(self._clients)

    @property
    def num_held(self) -> int:
        """Views that are held for all processes."""
        return sum(client.num_held for client in self._clients.values())

    def attachment(self, number: int) -> AttachedClient | None:
        """Return the process that was given this number, while it is attached."""
        return self._clients.get(number)

    async def start(self) -> None:
        """Listen. Raises `SettingsError` when the memory cannot be shared, or the folder is not this user's alone."""
        if self._memory.fd is None:
            raise SettingsError("memory can be shared on Linux only")
        self._loop = asyncio.get_running_loop()
        open_folder(self._folder)
        if num_removed := remove_stale(self._folder):
            log.info("stale_sockets_removed", num_sockets=num_removed)
        self._listener, self._path = listen(self._folder, _BACKLOG)
        self._loop.add_reader(self._listener, self._accept)
        self._memory.watch(self._on_touched)

    async def close(self) -> None:
        """Remove the socket and end all connections. Views that processes have stay good; idempotent."""
        if self._listener is None:
            return
        self._memory.unwatch(self._on_touched)
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        self._listener = None
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
        for greeting in list(self._greetings):
            greeting.close()
        for client in list(self._clients.values()):
            client.close()

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(_BACKLOG):
            try:
                connection, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.warning("attaching_failed", error=str(error))
                self._loop.remove_reader(self._listener)
                self._retry = self._loop.call_later(_RETRY_S, self._loop.add_reader, self._listener, self._accept)
                return
            if len(self._greetings) >= _MAX_GREETINGS or len(self._clients) >= self._max_clients:
                log.warning("attaching_refused", num_attached=len(self._clients), num_waiting=len(self._greetings))
                connection.close()
                continue
            connection.setblocking(False)
            self._greetings.add(_Greeting(connection, self._handshake_s, self._on_greeted))

    def _on_greeted(self, greeting: "_Greeting", hello: bytes | None) -> None:
        """Take a connection that has said hello, or close one that never will."""
        self._greetings.discard(greeting)
        connection = greeting.connection
        if hello is None or self._memory.fd is None or len(self._clients) >= self._max_clients:
            connection.close()
            return
        magic, token = HELLO.unpack(hello)
        if not (magic == MAGIC and hmac.compare_digest(token, self._token)):
            log.warning("attaching_refused", reason="wrong token")
            connection.close()
            return
        number = secrets.randbits(63) + 1
        touched = self._memory.touched_bytes
        welcome = WELCOME.pack(MAGIC, number, self._memory.size_bytes, touched)
        try:
            is_sent = socket.send_fds(connection, [welcome], [self._memory.fd]) == len(welcome)
        except OSError:
            is_sent = False
        # From the first byte on the process may have the memory; what it does not know to be complete it does not use.
        if not is_sent:
            connection.close()
            return
        client = AttachedClient(number, connection, self._max_streams, touched, self._on_ended)
        self._clients[number] = client
        client.tell_touched(self._memory.touched_bytes)

    def _on_ended(self, number: int) -> None:
        self._clients.pop(number, None)

    def _on_touched(self) -> None:
        """Called in any thread."""
        if not self._is_telling:
            self._is_telling = True
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self._is_telling = False
        for client in list(self._clients.values()):
            client.tell_touched(self._memory.touched_bytes)


class _Greeting:
    """A connection that has not said its token yet; it costs a descriptor, and not for long."""

    def __init__(
        self, connection: socket.socket, timeout_s: float, done: Callable[["_Greeting", bytes | None], None]
    ) -> None:
        self.connection = connection
        self._done = done
        self._read = b""
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(timeout_s, self.close)
        self._loop.add_reader(connection, self._on_readable)

    def close(self) -> None:
        self._end(None)

    def _on_readable(self) -> None:
        try:
            data = self.connection.recv(HELLO.size - len(self._read))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        self._read += data
        if not data:
            self._end(None)
        elif len(self._read) == HELLO.size:
            self._end(self._read)

    def _end(self, hello: bytes | None) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self.connection)
        self._done(self, hello)
