"""How fast entries are sealed and verified, by the number of threads, in memory that another process has mapped too."""

import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from shared.engine.codecs import CodecThreads
from shared.ids import BlockKey
from shared.kv.frame import Frame, seal_all, verify_all
from shared.kv.payloads import load_payload_kernels

Row = dict[str, str | int | float | bool | None]

MIB = 1 << 20
ENTRY_BYTES = 256 * 1024
AT_ONCE = 128
"""Entries of one batch: 32 MiB, what the publisher names in one message."""


def measure(num_entries: int, repetitions: int) -> list[Row]:
    """Return GB/s of sealing and of verifying entries of 256 KiB."""
    rows: list[Row] = []
    with mapped(num_entries * ENTRY_BYTES, shared=True) as content:
        np.frombuffer(content, np.uint64)[:] = np.arange(num_entries * ENTRY_BYTES // 8, dtype=np.uint64)
        payloads = [content[i * ENTRY_BYTES : (i + 1) * ENTRY_BYTES] for i in range(num_entries)]
        keys = [BlockKey(i.to_bytes(32, "big")) for i in range(num_entries)]
        frames = seal_all(keys, 0, payloads)

        def sealed(first: int, end: int) -> list[Frame]:
            return seal_all(keys[first:end], 0, payloads[first:end])

        def verified(first: int, end: int) -> list[bool]:
            return verify_all(frames[first:end])

        for num_threads in (1, 2, 4, 8):
            threads = CodecThreads(num_threads)
            rows.append(
                {
                    "threads": num_threads,
                    "native": load_payload_kernels() is not None,
                    "seal_gb_per_s": _batches(threads, sealed, num_entries, repetitions),
                    "verify_gb_per_s": _batches(threads, verified, num_entries, repetitions),
                }
            )
            threads.close()
        if not all(verified(0, num_entries)):
            raise ValueError("an intact entry is said to be corrupt")
    return rows


@contextmanager
def mapped(num_bytes: int, *, shared: bool) -> Iterator[memoryview]:
    """A mapping whose pages were touched, of a memfd or of the process's own."""
    with ExitStack() as stack:
        if shared:
            descriptor = os.memfd_create("room")
            stack.callback(os.close, descriptor)
            os.ftruncate(descriptor, num_bytes)
            mapping = mmap.mmap(descriptor, num_bytes)
        else:
            mapping = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        np.frombuffer(mapping, np.uint8)[:] = 0
        yield memoryview(mapping)  # unmapped when nothing refers to it any more


def speed(call: Callable[[], object], num_bytes: int, repetitions: int) -> float:
    """Return GB/s of the quickest of several calls, after one that is not counted."""
    call()
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return round(num_bytes / min(times) / 1e9, 2)


def _batches(threads: CodecThreads, work: Callable[[int, int], list[Any]], num_entries: int, repetitions: int) -> float:
    def batch(first: int) -> None:
        count = min(AT_ONCE, num_entries - first)
        threads.shares(lambda start, end: work(first + start, first + end), count, count)

    def all_batches() -> None:
        for first in range(0, num_entries, AT_ONCE):
            batch(first)

    return speed(all_batches, num_entries * ENTRY_BYTES, repetitions)
