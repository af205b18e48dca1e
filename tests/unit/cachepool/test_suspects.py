"""A suspect is left alone for a while, counted from its last offence, and forgotten then."""

from services.cachepool.suspects import SUSPECT_S, Suspects
from tests.unit.cachepool.samples import ManualClock


def test_a_suspect_is_left_alone_and_then_forgiven() -> None:
    clock = ManualClock()
    suspects = Suspects(clock)
    assert not suspects.is_suspect("a:1")
    assert suspects.accuse("a:1")
    assert suspects.is_suspect("a:1")
    assert not suspects.is_suspect("b:1")
    clock.advance(SUSPECT_S / 2)
    assert not suspects.accuse("a:1"), "it was suspect already"
    clock.advance(SUSPECT_S * 0.9)
    assert suspects.is_suspect("a:1"), "time counts from the last offence"
    clock.advance(SUSPECT_S)
    assert not suspects.is_suspect("a:1")
    assert suspects.accuse("a:1"), "forgiven, and caught again"
