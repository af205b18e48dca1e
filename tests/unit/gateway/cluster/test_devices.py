"""Where a prompt's beginning was served last."""

from services.gateway.cluster.devices import MAX_BLOCKS_BACK, OnDevice, ServedPrompts
from shared.ids import BlockKey, WorkerId

A, B = WorkerId("a"), WorkerId("b")


def keys(*numbers: int) -> list[BlockKey]:
    return [BlockKey(number.to_bytes(32, "little")) for number in numbers]


def test_the_longest_beginning_wins_and_the_last_worker() -> None:
    served = ServedPrompts()
    assert served.longest(keys(1, 2)) is None
    served.note([], A)
    served.note(keys(1), A)
    served.note(keys(1, 2, 3), B)
    assert served.longest(keys(1, 2)) == OnDevice(A, 1)
    assert served.longest(keys(1, 2, 3, 4)) == OnDevice(B, 3)
    served.note(keys(1, 2, 3), A)
    assert served.longest(keys(1, 2, 3)) == OnDevice(A, 3)
    assert served.longest(keys(7)) is None


def test_a_prompt_that_is_much_longer_is_not_recognised() -> None:
    served = ServedPrompts()
    served.note(keys(0), A)
    assert served.longest(keys(*range(MAX_BLOCKS_BACK))) == OnDevice(A, 1)
    assert served.longest(keys(*range(MAX_BLOCKS_BACK + 1))) is None


def test_the_latest_prompts_are_remembered() -> None:
    served = ServedPrompts(max_prompts=2)
    for number in (1, 2, 1, 3):
        served.note(keys(number), A)
    assert [served.longest(keys(number)) is not None for number in (1, 2, 3)] == [True, False, True]
