"""One reader that several streams serve: each takes what is next whenever its connection has room."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

from services.cachepool.settings import MAX_STREAMS
from shared.errors import Overloaded

R = TypeVar("R")

MAX_ENDED = 4096
"""Ids remembered after their end: a stream that comes that late has nothing left to do."""


class Slot(NamedTuple, Generic[R]):
    """One stream's slot in a share."""

    reader: R
    changed: asyncio.Event  # set whenever there may be something for this stream to do
    wake_others: Callable[[], None]


class _Share(Generic[R]):
    def __init__(self, opening: Callable[[Callable[[], None]], R]) -> None:
        self.streams: set[asyncio.Event] = set()
        self.reader = opening(self.notify)

    def notify(self) -> None:
        for changed in self.streams:
            changed.set()


class SharedReaders(Generic[R]):
    """Readers by the id that their streams came with. A reader is open from its first stream's coming to its last one's
    end; a stream without an id has a reader of its own.

    Streams of one share differ in speed, and how much is not known beforehand: what each carries is decided message by
    message, so that all of them end together and the lowest layer leaves first on whichever has room.
    """

    def __init__(self) -> None:
        self._open: dict[bytes, _Share[R]] = {}
        self._ended: dict[bytes, None] = {}  # in the order of their ends

    @contextmanager
    def join(
        self, share_id: bytes, opening: Callable[[Callable[[], None]], R], closing: Callable[[R], None]
    ) -> Iterator[Slot[R] | None]:
        """Take a slot for as long as the stream lives; None when the share is over.

        `opening` gets the function that its reader shall call when there is something new. Raises `Overloaded`, and
        what `opening` raises.
        """
        if share_id in self._ended:
            yield None
            return
        share = self._open.get(share_id)
        if share is not None and len(share.streams) >= MAX_STREAMS:
            raise Overloaded(f"a share has {MAX_STREAMS} streams already")
        if share is None:
            share = _Share(opening)
            if share_id:
                self._open[share_id] = share
        changed = asyncio.Event()
        share.streams.add(changed)
        try:
            yield Slot(share.reader, changed, share.notify)
        finally:
            share.streams.remove(changed)
            if not share.streams:
                self._end(share_id)
                closing(share.reader)

    def _end(self, share_id: bytes) -> None:
        if self._open.pop(share_id, None) is None:
            return
        self._ended[share_id] = None
        if len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]
