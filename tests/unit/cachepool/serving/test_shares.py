"""Streams that serve one reader: it opens with the first, closes with the last, and nobody opens it a second time."""

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from services.cachepool.serving.shares import MAX_ENDED, SharedReaders
from services.cachepool.settings import MAX_STREAMS
from shared.errors import Overloaded

ID = b"i" * 16


class Readers:
    """Opens readers that are numbers, and remembers which were closed."""

    def __init__(self) -> None:
        self.notify: list[Callable[[], None]] = []
        self.closed: list[int] = []

    def open(self, notify: Callable[[], None]) -> int:
        self.notify.append(notify)
        return len(self.notify)


@pytest.fixture
def readers() -> Readers:
    return Readers()


def test_streams_of_one_share_have_one_reader_and_all_are_woken(readers: Readers) -> None:
    shares = SharedReaders[int]()
    with ExitStack() as streams:
        slots = [streams.enter_context(shares.join(ID, readers.open, readers.closed.append)) for _ in range(3)]
        assert [slot.reader for slot in slots if slot] == [1, 1, 1]
        readers.notify[0]()
        assert all(slot is not None and slot.changed.is_set() for slot in slots)
        assert readers.closed == []
    assert readers.closed == [1]


def test_a_stream_that_comes_after_the_end_has_nothing_to_do(readers: Readers) -> None:
    shares = SharedReaders[int]()
    with shares.join(ID, readers.open, readers.closed.append):
        pass
    with shares.join(ID, readers.open, readers.closed.append) as slot:
        assert slot is None
    assert len(readers.notify) == 1


def test_streams_without_an_id_are_alone(readers: Readers) -> None:
    shares = SharedReaders[int]()
    for number in (1, 2):
        with shares.join(b"", readers.open, readers.closed.append) as slot:
            assert slot is not None
            assert slot.reader == number
    assert readers.closed == [1, 2]


def test_the_streams_of_a_share_are_bounded(readers: Readers) -> None:
    shares = SharedReaders[int]()
    with ExitStack() as streams:
        for _ in range(MAX_STREAMS):
            streams.enter_context(shares.join(ID, readers.open, readers.closed.append))
        with pytest.raises(Overloaded), shares.join(ID, readers.open, readers.closed.append):
            pass
    assert readers.closed == [1]


def test_what_is_remembered_is_bounded(readers: Readers) -> None:
    shares = SharedReaders[int]()
    for number in range(MAX_ENDED + 1):
        with shares.join(number.to_bytes(16, "big"), readers.open, readers.closed.append):
            pass
    with shares.join(bytes(16), readers.open, readers.closed.append) as slot:
        assert slot is not None, "the oldest is forgotten"


def test_a_reader_that_cannot_be_opened_leaves_nothing(readers: Readers) -> None:
    shares = SharedReaders[int]()

    def refuse(notify: Callable[[], None]) -> int:
        raise ValueError

    with pytest.raises(ValueError), shares.join(ID, refuse, readers.closed.append):
        pass
    with shares.join(ID, readers.open, readers.closed.append) as slot:
        assert slot is not None
