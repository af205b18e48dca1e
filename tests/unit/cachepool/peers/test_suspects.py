"""A suspect is left alone for a while, counted from its last offence, and forgotten then."""

from services.cachepool.peers.suspects import CORRUPT_S, SILENT_S, Suspects
from tests.support.samples import ManualClock


def test_a_suspect_is_left_alone_and_then_forgiven() -> None:
    clock = ManualClock()
    suspects = Suspects(clock)
    assert not suspects.is_suspect("a:1")
    assert suspects.accuse("a:1", CORRUPT_S)
    assert suspects.is_suspect("a:1")
    assert not suspects.is_suspect("b:1")
    clock.advance(CORRUPT_S / 2)
    assert not suspects.accuse("a:1", CORRUPT_S), "it was suspect already"
    clock.advance(CORRUPT_S * 0.9)
    assert suspects.is_suspect("a:1"), "time counts from the last offence"
    clock.advance(CORRUPT_S)
    assert not suspects.is_suspect("a:1")
    assert suspects.accuse("a:1", CORRUPT_S), "forgiven, and caught again"


def test_a_lesser_offence_shortens_nothing() -> None:
    clock = ManualClock()
    suspects = Suspects(clock)
    suspects.accuse("a:1", CORRUPT_S)
    suspects.accuse("a:1", SILENT_S)
    clock.advance(CORRUPT_S - 1)
    assert suspects.is_suspect("a:1")
    suspects.accuse("b:1", SILENT_S)
    assert suspects.addresses() == ("a:1", "b:1")
    clock.advance(SILENT_S)
    assert not suspects.is_suspect("b:1")
    assert suspects.addresses() == ()
