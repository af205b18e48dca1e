"""Which of several choices are shown, and where much of them is spelt."""

import threading

from services.gateway.api.whole import INLINE_TOKENS, likeliest, spelt
from services.gateway.request.text import ChoiceDelta


def choice(number: int, num_tokens: int, logprob: float) -> ChoiceDelta:
    return ChoiceDelta(number, "", tuple(range(num_tokens)), "length", (), logprob)


def test_the_mean_counts_not_the_sum_and_the_first_of_equal_ones() -> None:
    choices = [choice(0, 2, -4.0), choice(1, 10, -5.0), choice(2, 4, -8.0), choice(3, 1, -0.25)]
    assert [best.choice for best in likeliest(choices, 3)] == [3, 1, 0]
    assert [best.choice for best in likeliest([choice(0, 0, 0.0), choice(1, 3, -1.0)], 2)] == [0, 1]


async def test_many_tokens_are_spelt_beside_the_loop() -> None:
    assert await spelt(INLINE_TOKENS, threading.current_thread) is threading.current_thread()
    assert await spelt(INLINE_TOKENS + 1, threading.current_thread) is not threading.current_thread()
