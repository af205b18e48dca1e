"""A tail's chunks."""

from services.decode.tail import Tail


def test_a_long_tail_runs_in_chunks() -> None:
    tail = Tail(start=64, end=1000, chunk_tokens=512)
    assert (tail.first, tail.chunk_end) == (64, 576)
    tail.first = tail.chunk_end
    assert tail.chunk_end == 1000
