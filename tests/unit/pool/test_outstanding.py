from shared.kv.codec import Codec
from shared.kv.entries import BlockEntries
from shared.kv.frame import seal
from shared.pool.lanes.lane import Arrived
from shared.pool.outstanding import Outstanding
from tests.support.samples import keys

A, B, STRANGE = keys("outstanding", 3)


def test_what_came_and_what_was_denied_is_lacking_no_more() -> None:
    left = Outstanding([BlockEntries(A, 0b111), BlockEntries(B, 0b1)])
    left.remove(Arrived([seal(A, 1, b"x", Codec.RAW)], [BlockEntries(B, 0b1)]))
    assert left.blocks() == [BlockEntries(A, 0b101), BlockEntries(B, 0)]
    assert left.lacking() == [BlockEntries(A, 0b101)]
    assert not left.is_empty
    left.remove(Arrived([seal(A, 0, b"x", Codec.RAW)], [], [BlockEntries(A, 0b100)]))
    assert left.is_empty


def test_what_nobody_asked_for_changes_nothing() -> None:
    """Frames are counted before anybody has verified them."""
    left = Outstanding([BlockEntries(A, 0b11)])
    sealed = seal(A, 0, b"x", Codec.RAW)
    frames = [sealed._replace(layer=layer) for layer in (-1, 2, 1 << 62)]
    left.remove(Arrived([*frames, sealed._replace(key=STRANGE)], [BlockEntries(STRANGE, 0b1)]))
    assert left.blocks() == [BlockEntries(A, 0b11)]
