"""Codec threads: order, errors, and that every share has ended."""

import threading

import pytest

from shared.engine.codecs import CodecThreads
from tests.support.waiting import LIMIT_S


@pytest.mark.parametrize("num_threads", [1, 2, 4])
@pytest.mark.parametrize("num_items", [0, 1, 2, 7, 64])
def test_results_come_in_order(num_threads: int, num_items: int) -> None:
    threads = CodecThreads(num_threads)
    try:
        assert threads.map(lambda item: item * item, range(num_items)) == [item * item for item in range(num_items)]
    finally:
        threads.close()


def test_threads_work_side_by_side() -> None:
    threads = CodecThreads(2)
    both = threading.Barrier(2, timeout=LIMIT_S)  # passes only if two threads are in `call` at once
    try:
        assert threads.map(lambda item: (both.wait(), item)[1], [3, 4]) == [3, 4]
    finally:
        threads.close()


@pytest.mark.parametrize("bad", [0, 5, 9])
def test_an_error_is_raised_when_all_have_ended(bad: int) -> None:
    threads, done = CodecThreads(2), []

    def call(item: int) -> int:
        if item == bad:
            raise ValueError(str(item))
        done.append(item)
        return item

    try:
        with pytest.raises(ValueError, match=str(bad)):
            threads.map(call, range(10))
        assert len(done) >= 5 - (bad % 5 == 0)
        assert threads.map(call, [1, 2]) == [1, 2]
    finally:
        threads.close()
    threads.close()


@pytest.mark.parametrize("most", [0, 1, 2, 9])
@pytest.mark.parametrize("count", [0, 1, 5, 8])
def test_shares_are_ranges_in_order_and_no_more_than_asked_for(most: int, count: int) -> None:
    threads, ranges = CodecThreads(3), []

    def call(first: int, end: int) -> list[int]:
        ranges.append((first, end))
        return list(range(first, end))

    try:
        assert threads.shares(call, count, most) == list(range(count))
        assert len(ranges) <= max(1, min(3, most))
        assert all(first < end for first, end in ranges if count)
    finally:
        threads.close()
