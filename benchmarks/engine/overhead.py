"""What of a decode step at batch 8 is not spent in kernels: the engine's own time, Python's included."""

import ctypes
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.engine.batch import running_batch
from benchmarks.engine.node import open_decode
from benchmarks.harness import Report, Row, at_most
from benchmarks.peers.protocol import Prompts

BATCH, CONTEXT = 8, 512
LIMIT = 0.10
KERNEL_PREFIX = "prfaas_"


@dataclass
class Clock:
    """Seconds inside the native library, and calls of it."""

    seconds: float = 0.0
    calls: int = 0


class _Timed:
    """A function of a C library that also counts its time; everything else is the function's."""

    def __init__(self, function: Any, clock: Clock) -> None:
        object.__setattr__(self, "_function", function)
        object.__setattr__(self, "_clock", clock)

    def __call__(self, *arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return self._function(*arguments)
        finally:
            self._clock.seconds += time.perf_counter() - started
            self._clock.calls += 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._function, name, value)


@contextmanager
def timed_kernels() -> Iterator[Clock]:
    """Count time in our native kernels, for libraries whose functions are looked up while the context is open."""
    clock = Clock()
    plain = ctypes.CDLL.__getitem__

    def lookup(library: ctypes.CDLL, name: Any) -> Any:
        function = plain(library, name)
        return _Timed(function, clock) if str(name).startswith(KERNEL_PREFIX) else function

    ctypes.CDLL.__getitem__ = lookup  # type: ignore[method-assign]
    try:
        yield clock
    finally:
        ctypes.CDLL.__getitem__ = plain  # type: ignore[method-assign]


async def measure(quick: bool) -> Report:
    """Time steps as they are, then again under a profiler, which tells how much of them is torch's operators.

    The profiler slows down what it looks at, mostly outside operators, so that the share is an upper bound.
    """
    steps = 16 if quick else 100
    recorder = profile(activities=[ProfilerActivity.CPU])
    prompts = Prompts(1).several(BATCH, CONTEXT)
    with timed_kernels() as clock:
        async with open_decode() as node, running_batch(node, prompts, 3 * steps) as batch:
            plain = await batch.steps(steps)
            await node.host.torch_thread.run(recorder.start)
            clock.seconds, clock.calls, started = 0.0, 0, time.perf_counter()
            await batch.steps(steps)
            elapsed, native = time.perf_counter() - started, Clock(clock.seconds, clock.calls)
            await node.host.torch_thread.run(recorder.stop)
            model = node.model.files.name
    operators = [event for event in _events(recorder) if event.cpu_parent is None and event.name.startswith("aten::")]
    torch_s = sum(event.time_range.elapsed_us() for event in operators) / 1e6 / steps
    native_s, step_s = native.seconds / steps, elapsed / steps
    outside = 1 - (torch_s + native_s) / step_s
    row: Row = {
        "model": model,
        "step_ms": _ms(statistics.median(plain)),
        "profiled_step_ms": _ms(step_s),
        "native_ms": _ms(native_s),
        "native_calls": round(native.calls / steps, 1),
        "torch_ms": _ms(torch_s),
        "torch_operators": round(len(operators) / steps, 1),
        "outside_share": round(outside, 4),
    }
    return Report([row], [at_most(f"{model}: share of a step of {BATCH} outside kernels", outside, LIMIT)])


def _events(recorder: Any) -> Any:
    return recorder.events() or []


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
