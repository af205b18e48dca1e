"""Mapped memory that a GPU may copy from and to by itself: registered with CUDA piece by piece, ahead of its use."""

from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from threading import Event, Thread, current_thread
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from shared.kv.codec import Payload
from shared.kv.payloads import addresses_of
from shared.log import get_logger

log = get_logger()

REGISTERED_PIECE_BYTES = 64 * 1024 * 1024
"""What is registered by one call: some tens of milliseconds, in which the driver holds up who maps memory."""
NOWHERE = 0
FORGET_S = 60.0
"""How long it may take to unregister a mapping; then it goes as it is."""
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


class RegisteredMemory:
    """How much of each mapping's beginning is registered; for any thread. Without a registrar nothing ever is.

    Who owns a mapping says how much of its beginning is in use with `grow`, as often as that grows, and calls `forget`
    before the mapping goes, when no copy from or to it is under way. What is not registered has to be copied through
    other memory. One thread registers; what others call takes no lock, so that it may be called by the garbage
    collector, from within anything.
    """

    def __init__(self, registrar: HostRegistrar | None = None) -> None:
        self._registrar = registrar
        self._ends: dict[int, int] = {}  # by mapping, of what is registered; written by the thread alone
        self._leaving: set[int] = set()  # mappings of which nothing more is to be registered
        self._work: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="registering", daemon=True) if registrar is not None else None
        if self._thread is not None:
            self._thread.start()

    @property
    def registers(self) -> bool:
        """Whether there is a registrar."""
        return self._registrar is not None

    def grow(self, address: int, num_bytes: int) -> None:
        """Register the leading bytes of a mapping in the background. `address` is the mapping's own, page-aligned.

        A piece is registered once it is in use wholly: what is left waits until more of the mapping is. When one
        cannot be registered, no further one of the mapping is until it grows again.
        """
        if self._thread is not None:
            self._work.put(partial(self._grow, address, num_bytes))

    def forget(self, address: int) -> None:
        """Unregister a mapping; return when it is done. Idempotent."""
        if self._thread is None:
            return
        self._leaving.add(address)
        if current_thread() is self._thread:  # a collection of garbage in the midst of its work
            self._unregister(address)
            self._work.put(partial(self._leaving.discard, address))
            return
        self._work.put(partial(self._unregister, address))
        self._work.put(partial(self._leaving.discard, address))
        try:
            self.settle(FORGET_S)
        except TimeoutError:
            log.warning("memory_not_unregistered", error=f"not within {FORGET_S:g} s")

    def settle(self, timeout_s: float) -> int:
        """Wait until what was asked for so far has been done. Return how many bytes are registered.

        Raises `TimeoutError`.
        """
        if self._thread is not None:
            done = Event()
            self._work.put(done.set)
            if not done.wait(timeout_s):
                raise TimeoutError(f"memory is being registered for longer than {timeout_s:g} s")
        return sum(end - address for address, end in self._ends.copy().items())

    def addresses(self, payloads: Sequence[Payload]) -> NDArray[np.int64]:
        """Return where a device may copy each payload from or to, `NOWHERE` for those that it may not.

        That is none that reaches from one piece into the next: CUDA refuses a copy over several registrations.
        """
        found = np.full(len(payloads), NOWHERE, np.int64)
        mappings = list(self._ends.copy().items())
        if not mappings or not payloads:
            return found
        places = np.array(addresses_of(payloads), np.int64)
        sizes = np.fromiter(map(len, payloads), np.int64, len(payloads))
        for start, end in mappings:
            is_inside = (places >= start) & (places < end)
            is_inside &= (places - start) % REGISTERED_PIECE_BYTES + sizes <= REGISTERED_PIECE_BYTES
            found[is_inside] = places[is_inside]
        return found

    def close(self) -> None:
        """Unregister everything and end the thread. Idempotent."""
        if self._thread is None:
            return
        self._leaving.update(self._ends.copy())
        self._work.put(None)
        self._thread.join(FORGET_S)
        self._thread = None

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
        for address in list(self._ends):
            self._unregister(address)

    def _grow(self, address: int, num_bytes: int) -> None:
        assert self._registrar is not None
        start = self._ends.get(address, address)
        while start + REGISTERED_PIECE_BYTES <= address + num_bytes and address not in self._leaving:
            try:
                self._registrar.register(start, REGISTERED_PIECE_BYTES)
            except (OSError, RuntimeError) as error:
                log.warning("memory_not_registered", num_bytes=REGISTERED_PIECE_BYTES, error=str(error))
                return
            if address in self._leaving:  # and perhaps unregistered as far as was known
                self._undo(start)
                return
            start += REGISTERED_PIECE_BYTES
            self._ends[address] = start

    def _unregister(self, address: int) -> None:
        for start in range(address, self._ends.pop(address, address), REGISTERED_PIECE_BYTES):
            self._undo(start)

    def _undo(self, start: int) -> None:
        assert self._registrar is not None
        try:
            self._registrar.unregister(start)
        except (OSError, RuntimeError) as error:
            log.warning("memory_not_unregistered", num_bytes=REGISTERED_PIECE_BYTES, error=str(error))


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _check(status: Any) -> None:
    if int(status) != 0:
        raise OSError(f"CUDA says {status}")
