"""Who waits for whom: the first of equal beginnings computes, nobody waits in a circle."""

from hypothesis import given
from hypothesis import strategies as st

from services.decode.following import Remainder, followers
from shared.ids import BlockKey


def keys(*names: str) -> list[BlockKey]:
    return [BlockKey(name.encode()) for name in names]


def test_the_first_computes_and_others_follow() -> None:
    tails = [
        ("first", Remainder(keys("a", "b"), has_begun=False)),
        ("same", Remainder(keys("a", "b", "c"), has_begun=False)),
        ("later block", Remainder(keys("b", "d"), has_begun=False)),
        ("other", Remainder(keys("x"), has_begun=False)),
        ("short", Remainder((), has_begun=False)),
    ]
    assert followers(tails) == ["same", "later block"]


def test_who_has_begun_goes_on() -> None:
    tails = [("first", Remainder(keys("a"), has_begun=False)), ("second", Remainder(keys("a"), has_begun=True))]
    assert followers(tails) == []


@given(st.lists(st.tuples(st.lists(st.sampled_from("abcd"), max_size=4), st.booleans()), max_size=10))
def test_the_first_of_all_never_waits_and_every_block_has_one_that_computes_it(
    shapes: list[tuple[list[str], bool]],
) -> None:
    tails = [(number, Remainder(keys(*names), begun)) for number, (names, begun) in enumerate(shapes)]
    waiting = followers(tails)
    computing = {key for number, (blocks, _) in tails if number not in waiting for key in blocks}
    for number in waiting:
        remainder = tails[number][1]
        assert not remainder.has_begun
        assert remainder.keys[0] in computing
    assert 0 not in waiting
