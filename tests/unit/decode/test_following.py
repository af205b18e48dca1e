"""Who waits for whom: the first of equal beginnings computes, nobody waits in a circle."""

from hypothesis import given
from hypothesis import strategies as st

from services.decode.following import TailBlocks, in_turn, leaders
from shared.ids import BlockKey


def keys(*names: str) -> list[BlockKey]:
    return [BlockKey(name.encode()) for name in names]


def test_the_first_computes_and_others_follow() -> None:
    tails = [
        ("first", TailBlocks(keys("a", "b"), has_begun=False)),
        ("same", TailBlocks(keys("a", "b", "c"), has_begun=False)),
        ("later block", TailBlocks(keys("b", "d"), has_begun=False)),
        ("other", TailBlocks(keys("x"), has_begun=False)),
        ("short", TailBlocks((), has_begun=False)),
    ]
    assert leaders(tails) == {"same": "first", "later block": "first"}


def test_who_has_begun_goes_on_and_is_waited_for() -> None:
    begun, urgent = TailBlocks(keys("a", "b"), has_begun=True), TailBlocks(keys("b"), has_begun=False)
    assert leaders([("first", begun), ("second", begun)]) == {}
    assert leaders([("urgent", urgent), ("begun", begun)]) == {"urgent": "begun"}


def test_who_is_waited_for_has_the_turn_of_the_first_who_waits() -> None:
    assert in_turn(["urgent", "other", "begun"], {"urgent": "begun"}) == ["begun", "other"]
    assert in_turn(["a", "b"], {}) == ["a", "b"]


@given(st.lists(st.tuples(st.lists(st.sampled_from("abcd"), max_size=4), st.booleans()), max_size=10))
def test_nobody_waits_for_one_that_waits_and_every_block_has_one_that_computes_it(
    shapes: list[tuple[list[str], bool]],
) -> None:
    tails = [(number, TailBlocks(keys(*names), begun)) for number, (names, begun) in enumerate(shapes)]
    waits_for = leaders(tails)
    for number, leader in waits_for.items():
        assert leader not in waits_for
        assert not tails[number][1].has_begun
        assert tails[number][1].keys[0] in tails[leader][1].keys
    turns = in_turn(range(len(tails)), waits_for)
    assert sorted([*turns, *waits_for]) == list(range(len(tails)))
