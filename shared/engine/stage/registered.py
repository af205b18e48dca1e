"""Mapped memory that a GPU may copy from and to by itself: registered with CUDA piece by piece, ahead of its use."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, NamedTuple, Protocol

import torch

from shared.kv.codec import Payload
from shared.kv.payloads import addresses_of
from shared.log import get_logger

log = get_logger()

REGISTERED_PIECE_BYTES = 64 * 1024 * 1024
"""What is registered by one call: some tens of milliseconds, in which the driver holds up who maps memory."""
_PORTABLE = 1  # cudaHostRegisterPortable: for all devices of this process


class HostRegistrar(Protocol):
    """Makes memory of this process known to a device."""

    def register(self, address: int, num_bytes: int) -> None:
        """Raise `OSError` when the memory cannot be registered."""

    def unregister(self, address: int) -> None:
        """Undo `register`. Raise `OSError` when that fails."""


class CudaRegistrar:
    """The CUDA runtime's calls, through PyTorch. What fails leaves an error behind in the thread that called."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def register(self, address: int, num_bytes: int) -> None:
        with torch.cuda.device(self._device):
            _check(_runtime().cudaHostRegister(address, num_bytes, _PORTABLE))

    def unregister(self, address: int) -> None:
        with torch.cuda.device(self._device):
            _check(_runtime().cudaHostUnregister(address))


class MemoryRun(NamedTuple):
    """Payloads `[first, end)` of some: they lie side by side in one registered piece, or have no address to copy at."""

    first: int
    end: int
    address: int | None
    num_bytes: int


class RegisteredMemory:
    """Which parts of mappings are registered; for any thread. Without a registrar nothing ever is.

    Who owns a mapping says how much of its beginning is in use with `grow`, as often as that grows, and calls `forget`
    before the mapping goes, when no copy from or to it is under way. What is not registered has to be copied through
    other memory.
    """

    def __init__(self, registrar: HostRegistrar | None = None) -> None:
        self._registrar = registrar
        self._lock = Lock()
        self._asked: dict[int, int] = {}  # by mapping: up to where pieces were asked for
        self._pieces: dict[int, list[int]] = {}  # by mapping: starts
        self._starts: list[int] = []  # of all mappings, in order: a new list for each change
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="registering") if registrar is not None else None

    def grow(self, address: int, num_bytes: int) -> None:
        """Register the leading bytes of a mapping in the background. `address` is the mapping's own, page-aligned.

        A piece is registered once it is in use wholly: what is left waits until more of the mapping is.
        """
        if self._thread is None:
            return
        with self._lock:
            asked = self._asked.setdefault(address, address)
            whole = address + num_bytes // REGISTERED_PIECE_BYTES * REGISTERED_PIECE_BYTES
            self._asked[address] = max(asked, whole)
            for start in range(asked, whole, REGISTERED_PIECE_BYTES):
                self._thread.submit(self._register, address, start)

    def forget(self, address: int) -> None:
        """Unregister a mapping; return when it is done. Idempotent."""
        with self._lock:
            self._asked.pop(address, None)  # what waits in the thread finds that
        if self._thread is not None:
            self._thread.submit(self._unregister, address).result()

    def settle(self, timeout_s: float) -> int:
        """Wait until what was asked for so far is registered, or could not be. Return how many bytes are registered.

        Raises `TimeoutError`.
        """
        if self._thread is not None:
            self._thread.submit(lambda: None).result(timeout_s)
        return len(self._starts) * REGISTERED_PIECE_BYTES

    def runs(self, payloads: Sequence[Payload]) -> Iterator[MemoryRun]:
        """Divide payloads into runs that one copy takes along, as long as they can be, in order.

        No run is of two pieces: CUDA refuses a copy over several registrations.
        """
        first, address, piece, size = 0, 0, None, 0
        starts = self._starts
        places = addresses_of(payloads) if starts else [0] * len(payloads)
        for i, (payload, place) in enumerate(zip(payloads, places, strict=True)):
            found = _piece_of(starts, place, len(payload))
            if i > first and (found != piece or (found is not None and place != address + size)):
                yield MemoryRun(first, i, None if piece is None else address, size)
                first, size = i, 0
            if i == first:
                address, piece = place, found
            size += len(payload)
        if payloads:
            yield MemoryRun(first, len(payloads), None if piece is None else address, size)

    def close(self) -> None:
        """Unregister everything and end the thread. Idempotent."""
        for address in [*self._asked, *self._pieces]:
            self.forget(address)
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None

    def _register(self, address: int, start: int) -> None:
        assert self._registrar is not None
        if address not in self._asked:
            return
        try:
            self._registrar.register(start, REGISTERED_PIECE_BYTES)
        except (OSError, RuntimeError) as error:
            log.warning("memory_not_registered", num_bytes=REGISTERED_PIECE_BYTES, error=str(error))
            return
        with self._lock:
            self._pieces.setdefault(address, []).append(start)
            self._starts = sorted([*self._starts, start])

    def _unregister(self, address: int) -> None:
        assert self._registrar is not None
        with self._lock:
            gone = self._pieces.pop(address, [])
            self._starts = [start for start in self._starts if start not in gone]
        for start in gone:
            try:
                self._registrar.unregister(start)
            except (OSError, RuntimeError) as error:
                log.warning("memory_not_unregistered", num_bytes=REGISTERED_PIECE_BYTES, error=str(error))


def _piece_of(starts: Sequence[int], address: int, num_bytes: int) -> int | None:
    """Return the start of the piece that holds this memory wholly."""
    at = bisect_right(starts, address) - 1
    return starts[at] if at >= 0 and address + num_bytes <= starts[at] + REGISTERED_PIECE_BYTES else None


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _check(status: Any) -> None:
    if int(status) != 0:
        raise OSError(f"CUDA says {status}")
