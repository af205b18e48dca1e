"""Encoding and decoding of entries side by side: NumPy and Zstandard let go of the interpreter while they work."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from shared.engine.settings import available_cores

T = TypeVar("T")
R = TypeVar("R")

MAX_THREADS = 4
"""One core encodes for more than a Gbit/s of link; the others belong to the model."""


def codec_threads() -> int:
    """Return how many threads an engine on this machine gives to codecs, that of the copier included."""
    return max(1, min(MAX_THREADS, available_cores() // 2))


class CodecThreads:
    """Maps a function over entries with a bounded number of threads, the caller's among them.

    With one thread it is a loop. Calls come from the copier thread, one at a time, so that nothing queues up here.
    """

    def __init__(self, num_threads: int = 1) -> None:
        self._num_threads = num_threads
        self._others = ThreadPoolExecutor(num_threads - 1, thread_name_prefix="codec") if num_threads > 1 else None

    @property
    def num_threads(self) -> int:
        """How many threads there are, the caller's among them."""
        return self._num_threads

    def map(self, call: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Return `call` of each item, in order. When some raise, the first one's error; all have ended then."""
        return self.shares(lambda first, end: [call(item) for item in items[first:end]], len(items), self._num_threads)

    def shares(self, call: Callable[[int, int], list[R]], count: int, most: int) -> list[R]:
        """Return what `call` returns of the ranges `[first, end)` that make up `count` items, joined in order.

        There are at most so many ranges as there are threads, and at most `most`. Errors are as those of `map`.
        """
        num_shares = max(1, min(self._num_threads, most, count))
        if self._others is None or num_shares == 1:
            return call(0, count)
        size = -(-count // num_shares)
        futures = [self._others.submit(call, first, min(count, first + size)) for first in range(size, count, size)]
        try:
            results = call(0, size)
        finally:
            for future in futures:
                future.exception()  # waits: an entry's memory may be the caller's
        for future in futures:
            results += future.result()
        return results

    def close(self) -> None:
        """End the threads. Idempotent."""
        if self._others is not None:
            self._others.shutdown(wait=True)
