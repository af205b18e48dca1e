"""What this machine can do at most with so many threads: bytes read and bfloat16 operations per second."""

import time
from collections.abc import Callable

import torch

from benchmarks.harness import Report
from shared.config import load
from shared.engine.settings import EngineSettings

READ_BYTES = 1 << 29
SIZES = (1024, 2048, 4096)
"""Of square matrices."""
REPETITIONS, QUICK_REPETITIONS = 12, 3


async def measure(quick: bool) -> Report:
    """The best of several ways and repetitions: a limit is what can be reached, not what usually is."""
    torch.set_num_threads(load(EngineSettings).num_threads)
    repetitions = QUICK_REPETITIONS if quick else REPETITIONS
    read_s = min(_seconds(read, repetitions) for read in _reads())
    flops = max(2 * size**3 / _seconds(_product(size), repetitions) for size in (SIZES[:2] if quick else SIZES))
    return Report([{"read_gb_per_s": round(READ_BYTES / read_s / 1e9, 2), "bf16_tflop_per_s": round(flops / 1e12, 3)}])


def _reads() -> list[Callable[[], object]]:
    numbers = torch.ones(READ_BYTES // 4)
    matrix, vector = numbers.view(-1, 1024), torch.ones(1024)
    return [numbers.sum, numbers.max, lambda: torch.mv(matrix, vector)]


def _product(size: int) -> Callable[[], object]:
    left, right = torch.ones(2, size, size, dtype=torch.bfloat16)
    return lambda: left @ right


def _seconds(call: Callable[[], object], repetitions: int) -> float:
    """Return the shortest of several calls, after one that is not counted."""
    call()
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)
