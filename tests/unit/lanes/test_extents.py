"""Free parts of a range against a model: a set of numbers."""

from hypothesis import given
from hypothesis import strategies as st

from shared.lanes.extents import Extents

SIZE = 40
STEPS = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, SIZE)), st.integers(0, 30).map(lambda n: (n,))
    ),
    max_size=60,
)


@given(STEPS)
def test_parts_never_overlap_and_come_back_whole(steps: list[tuple[int, ...]]) -> None:
    extents = Extents(3, SIZE)
    free = set(range(3, SIZE))
    taken: list[tuple[int, int]] = []
    for step in steps:
        if len(step) == 3:
            least, more, below = step
            part = extents.take(least, least + more, below)
            runs = [n for n in range(1, SIZE) for s in range(below - n + 1) if set(range(s, s + n)) <= free]
            longest = max(runs, default=0)
            if part is None:
                assert longest < least
                continue
            start, size = part
            assert size == min(longest, least + more)
            assert set(range(start, start + size)) <= free
            assert start + size <= below
            free -= set(range(start, start + size))
            taken.append(part)
            assert extents.high_water >= start + size
        elif taken:
            start, size = taken.pop(step[0] % len(taken))
            extents.give_back(start, size)
            free |= set(range(start, start + size))
    for start, size in taken:
        extents.give_back(start, size)
    assert extents.take(1, SIZE, SIZE) == (3, SIZE - 3)


def test_the_first_that_fits_is_taken() -> None:
    extents = Extents(0, 100)
    for _ in range(4):
        extents.take(10, 10, 100)
    extents.give_back(20, 10)
    extents.give_back(0, 10)
    assert extents.take(10, 10, 100) == (0, 10)
    assert extents.take(10, 10, 100) == (20, 10)
    assert extents.high_water == 40
