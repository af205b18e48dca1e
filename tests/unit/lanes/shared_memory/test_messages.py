"""Numbers arrive in any pieces."""

from hypothesis import given
from hypothesis import strategies as st

from shared.lanes.shared_memory.messages import NUMBER, Numbers


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20), st.lists(st.integers(1, 20), min_size=1))
def test_pieces_become_numbers(numbers: list[int], sizes: list[int]) -> None:
    data = b"".join(map(NUMBER.pack, numbers))
    found, reader, step = [], Numbers(), 0
    while data:
        size = sizes[step % len(sizes)]
        found += reader.feed(data[:size])
        data, step = data[size:], step + 1
    assert found == numbers
