"""One turn of one server, with what every process used meanwhile."""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import aiohttp
import psutil

from benchmarks.load.asking import Answers, Asking
from benchmarks.load.servers import LoadServer
from benchmarks.serve import new_session

Ask = Callable[[Asking, aiohttp.ClientSession], Awaitable[Answers]]


@dataclass(frozen=True)
class LoadTurn:
    """What was answered, and processor time while it was: of the server, of this client, of all others."""

    answers: Answers
    seconds: float  # with what was asked beside
    cpu_s: Counter[str]  # by process of the server
    client_cpu_s: float
    idle_cpu_s: float  # of the servers whose turn it is not
    foreign_cpu_s: float  # of processes that are no part of this benchmark
    memory_mb: Counter[str]  # of the server's processes at the end


def turn(server: LoadServer, servers: Sequence[LoadServer], what: str, ask: Ask) -> LoadTurn:
    """Ask one of the servers when all are at rest. A process of it that ends meanwhile is an error of the turn."""
    others = [other for other in servers if other is not server]
    for one in servers:
        if not one.settle():
            print(f"{one.name} does not come to rest", file=sys.stderr)
    pids = {process.pid for process in server.processes()}
    before, started = _Used.now(server, others), time.perf_counter()
    answers = asyncio.run(_asked(server.asking, ask))
    seconds = time.perf_counter() - started
    if {process.pid for process in server.processes()} != pids:
        answers.failures.append("a process of the server ended")
    used = _Used.now(server, others)
    cpu_s = used.server - before.server
    client_cpu_s, idle_cpu_s = used.client - before.client, used.idle - before.idle
    foreign_cpu_s = used.machine - before.machine - cpu_s.total() - client_cpu_s - idle_cpu_s
    rate = len(answers.outcomes) / answers.seconds
    foreign = f"{max(0.0, foreign_cpu_s) / seconds:.2f} foreign cores"
    said = f"{what}, {server.name}: {rate:.2f} requests/s, {len(answers.errors)} errors, {foreign}"
    print(said, file=sys.stderr, flush=True)
    return LoadTurn(answers, seconds, cpu_s, client_cpu_s, idle_cpu_s, max(0.0, foreign_cpu_s), server.memory_mb())


async def _asked(asking: Asking, ask: Ask) -> Answers:
    async with new_session() as session:
        return await ask(asking, session)


@dataclass(frozen=True)
class _Used:
    """Processor seconds since each process started."""

    server: Counter[str]
    client: float
    idle: float
    machine: float

    @classmethod
    def now(cls, server: LoadServer, others: Sequence[LoadServer]) -> "_Used":
        machine = psutil.cpu_times()
        busy = machine.user + machine.nice + machine.system + machine.irq + machine.softirq
        idle = sum(other.cpu_seconds().total() for other in others)
        return cls(server.cpu_seconds(), time.process_time(), idle, busy)
