"""What this machine allows: copies, first touches, checksums, a loopback connection, a bare gRPC stream."""

import mmap
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import xxhash
from numpy.typing import NDArray

from benchmarks.handover.counting import Counting
from benchmarks.handover.shapes import MIB
from benchmarks.harness import Row, Spread, alternate
from benchmarks.pool.lines import Child

TOTAL_BYTES = 256 * MIB
PIECE_BYTES = MIB
LIMIT_S = 60.0


def measure(counting: Counting, repetitions: int) -> list[Row]:
    """One row for each bound; the contestants take turns. The gRPC row counts the processor time of both ends."""
    source = np.random.default_rng(0).integers(0, 256, TOTAL_BYTES, dtype=np.uint8)
    target = np.ones_like(source)
    with _bare_stream(counting) as stream:
        contestants: dict[str, Callable[[], tuple[float, float]]] = {
            "memcpy": lambda: _timed(lambda: np.copyto(target, source)),
            "copy into fresh pages": lambda: _timed(lambda: _into_fresh_pages(source)),
            "XXH3": lambda: _timed(lambda: _pieces(source, xxhash.xxh3_64_intdigest)),
            "loopback TCP": lambda: _timed(lambda: _through_tcp(source, target)),
            "bare grpc.aio, 1 MiB": stream,
        }
        found = alternate(contestants, repetitions)
    return [
        {
            "bound": name,
            **Spread.of([TOTAL_BYTES / seconds / 1e9 for seconds, _ in taken]).cells("gb_per_s"),
            "cpu_s_per_gb": round(Spread.of([cpu_s / TOTAL_BYTES * 1e9 for _, cpu_s in taken]).median, 3),
        }
        for name, taken in found.items()
    ]


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that it took, and those of the processor."""
    started, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - cpu


def _into_fresh_pages(source: NDArray[np.uint8]) -> None:
    with mmap.mmap(-1, TOTAL_BYTES) as fresh:
        view = np.frombuffer(fresh, dtype=np.uint8)
        np.copyto(view, source)
        del view


def _pieces(source: NDArray[np.uint8], work: Callable[[memoryview], object]) -> None:
    for first in range(0, TOTAL_BYTES, PIECE_BYTES):
        work(source[first : first + PIECE_BYTES].data)


def _through_tcp(source: NDArray[np.uint8], target: NDArray[np.uint8]) -> None:
    """Send over one connection from one thread to another, which receives in place."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sending = socket.create_connection(server.getsockname(), LIMIT_S)
        receiving, _ = server.accept()
    with sending, receiving:
        receiving.settimeout(LIMIT_S)
        sender = threading.Thread(target=_pieces, args=(source, sending.sendall))
        sender.start()
        left = target.data
        while left:
            left = left[receiving.recv_into(left[:PIECE_BYTES]) :]
        sender.join()


@contextmanager
def _bare_stream(counting: Counting) -> Iterator[Callable[[], tuple[float, float]]]:
    """Start both ends of a stream with the suite's channel options; yield what moves `TOTAL_BYTES` down it."""
    module = [sys.executable, "-m", "benchmarks.pool.bare"]
    counters = [counting.counter() for _ in range(2)]
    server = Child([*module, "server"])
    try:
        client = Child([*module, "client", "0", server.about["address"]])
    except BaseException:
        server.close()
        raise
    pids = (server.pid, client.pid)

    def cpu_s() -> float:
        used = [counter.used(pid) for counter, pid in zip(counters, pids, strict=True)]
        return sum(one.user_s + one.system_s for one in used)

    def move() -> tuple[float, float]:
        before = cpu_s()
        client.send(do="get", entry_bytes=PIECE_BYTES, num_entries=TOTAL_BYTES // PIECE_BYTES, name="bound")
        answer = client.answer()
        return answer["ended"] - answer["started"], cpu_s() - before

    try:
        move()  # payloads are made, connections open
        yield move
    finally:
        client.close()
        server.close()
