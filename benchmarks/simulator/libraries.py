"""The event loop beside SimPy's on one toy: a single server with Poisson arrivals."""

import random
import statistics
import time
from collections import deque
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from benchmarks.harness import Row, alternate
from simulator.events import EventLoop

RATE, SERVICE_S = 0.8, 1.0


def run_callbacks(num_requests: int) -> float:
    """Return the mean wait, from callbacks on `EventLoop`."""
    loop, draw = EventLoop(), random.Random(1)
    queue: deque[float] = deque()
    waits: list[float] = []
    is_busy = False

    def arrive() -> None:
        queue.append(loop.now_s)
        if len(waits) + len(queue) < num_requests:
            loop.after(draw.expovariate(RATE), arrive)
        if not is_busy:
            serve()

    def serve() -> None:
        nonlocal is_busy
        is_busy = bool(queue)
        if is_busy:
            waits.append(loop.now_s - queue.popleft())
            loop.after(SERVICE_S, serve)

    loop.after(0.0, arrive)
    loop.run()
    return statistics.fmean(waits)


def run_simpy(num_requests: int) -> float:
    """Return the mean wait, from SimPy's processes and its `Resource`."""
    import simpy  # of the comparison alone

    env: Any = simpy.Environment()
    server: Any = simpy.Resource(env)
    draw = random.Random(1)
    waits: list[float] = []

    def request() -> Any:
        arrived_s = env.now
        with server.request() as turn:
            yield turn
            waits.append(env.now - arrived_s)
            yield env.timeout(SERVICE_S)

    def source() -> Any:
        for _ in range(num_requests):
            env.process(request())
            yield env.timeout(draw.expovariate(RATE))

    env.process(source())
    env.run()
    return statistics.fmean(waits)


def compare_libraries(num_requests: int, repetitions: int) -> list[Row]:
    """Return what a request takes in each; SimPy only where it is installed."""
    contestants: dict[str, Callable[[], float]] = {"callbacks on a heap": lambda: _timed(run_callbacks, num_requests)}
    if find_spec("simpy") is not None:
        contestants["SimPy"] = lambda: _timed(run_simpy, num_requests)
    found = alternate(contestants, repetitions)
    return [
        {"events": name, "requests_per_s": round(num_requests / statistics.median(seconds)), "requests": num_requests}
        for name, seconds in found.items()
    ]


def _timed(run: Callable[[int], float], num_requests: int) -> float:
    started = time.perf_counter()
    run(num_requests)
    return time.perf_counter() - started
