"""Token times: bounded, evenly thinned, first and last always among them."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.timeline.tokens import MAX_TIMES, TokenTimes


def filled(sizes: list[int]) -> TokenTimes:
    times = TokenTimes()
    for number, size in enumerate(sizes):
        times.add(float(number), size)
    return times


def test_few_tokens_keep_all_their_times() -> None:
    assert filled([1, 1, 2]).kept() == [(0.0, 1), (1.0, 2), (2.0, 4)]


def test_nothing_came() -> None:
    assert TokenTimes().kept() == []


@given(st.lists(st.integers(1, 9), max_size=2_000))
def test_however_many_come_the_bound_holds_and_what_is_kept_is_true(sizes: list[int]) -> None:
    times = filled(sizes)
    kept = times.kept()
    assert len(kept) <= MAX_TIMES + 1
    assert times.num_tokens == sum(sizes)
    sums = {(float(i), sum(sizes[: i + 1])) for i in {int(at) for at, _ in kept}}
    assert set(kept) == sums
    assert kept == sorted(kept)
    if sizes:
        assert kept[0] == (0.0, sizes[0])
        assert kept[-1][1] == sum(sizes)


def test_thinned_times_are_even() -> None:
    counts = [count for _, count in filled([1] * 1_000).kept()[:-1]]
    assert len(counts) > MAX_TIMES // 2 - 2
    assert len({later - earlier for earlier, later in pairwise(counts)}) == 1
