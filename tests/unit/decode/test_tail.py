"""A tail's chunks, and row ranges within them."""

from services.decode.tail import Tail


def test_a_long_tail_runs_in_chunks() -> None:
    tail = Tail(start=64, end=1000, chunk_tokens=512)
    assert (tail.first, tail.chunk_end, tail.begins_chunk) == (64, 576, True)
    assert not tail.computed(512)
    assert (tail.first, tail.chunk_end, tail.begins_chunk) == (576, 1000, True)
    assert tail.computed(424)


def test_a_row_range_leaves_the_chunk_where_it_ends() -> None:
    tail = Tail(start=10, end=1000, chunk_tokens=512)
    tail.computed(100)
    assert (tail.first, tail.chunk_end, tail.begins_chunk) == (110, 522, False)
    tail.computed(412)
    assert (tail.chunk_end, tail.begins_chunk) == (1000, True)


def test_a_chunk_that_is_between_layers_has_begun() -> None:
    tail = Tail(start=0, end=30, chunk_tokens=512, next_layer=2)
    assert not tail.begins_chunk
