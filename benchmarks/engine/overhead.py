"""What of a decode step at batch 8 is not spent in kernels: the engine's own time, Python's included."""

import ctypes
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Window:
    """What the torch thread spent in some whole steps, and in kernels meanwhile."""

    seconds: float
    native: Clock
    num_operators: int
    operator_s: float  # outermost operators only: an inner one is part of an outer one


class _Recorder:
    """Opens and closes a window; both run in the torch thread, so that the window holds whole steps."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._profile: Any = profile(activities=[ProfilerActivity.CPU])

    def open(self) -> None:
        self._profile.start()
        self._clock.seconds, self._clock.calls = 0.0, 0
        self._opened = time.perf_counter()

    def close(self) -> Window:
        seconds, native = time.perf_counter() - self._opened, replace(self._clock)
        self._profile.stop()
        outermost = [e for e in self._profile.events() if e.cpu_parent is None and e.name.startswith("aten::")]
        return Window(seconds, native, len(outermost), sum(e.time_range.elapsed_us() for e in outermost) / 1e6)


async def measure(quick: bool) -> Report:
    """Time steps as they are, then again under a profiler, which tells how much of them is torch's operators.

    The profiler makes operators and what lies between them slower; with the native kernels there are few of them.
    """
    steps = 16 if quick else 100
    prompts = Prompts(1).several(BATCH, CONTEXT)
    with timed_kernels() as clock:
        recorder = _Recorder(clock)
        async with open_decode() as node, running_batch(node, prompts, 3 * steps) as batch:
            plain = await batch.steps(steps)
            await node.host.torch_thread.run(recorder.open)
            mark = batch.mark()
            await batch.steps(steps)
            window = await node.host.torch_thread.run(recorder.close)
            num_steps = len(batch.since(mark))
            model = node.model.files.name
    outside = 1 - (window.operator_s + window.native.seconds) / window.seconds
    row: Row = {
        "model": model,
        "step_ms": _ms(statistics.median(plain)),
        "profiled_step_ms": _ms(window.seconds / num_steps),
        "native_ms": _ms(window.native.seconds / num_steps),
        "native_calls": round(window.native.calls / num_steps, 1),
        "torch_ms": _ms(window.operator_s / num_steps),
        "torch_operators": round(window.num_operators / num_steps, 1),
        "outside_share": round(outside, 4),
    }
    return Report([row], [at_most(f"{model}: share of a step of {BATCH} outside kernels", outside, LIMIT)])


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
