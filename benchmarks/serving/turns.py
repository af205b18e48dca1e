"""One turn of one server: guidellm's load, and what every process used of the processor meanwhile."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.load.servers import LoadServer
from benchmarks.peers.process import PeerFailed
from benchmarks.serving.conversations import ConversationLoad, HeldConversations, command, read
from shared.model.files.catalog import ModelFiles

LIMIT_S = 600.0
LOOK_S = 0.2
_SHOWN = 800  # characters of what guidellm said last, if it failed


@dataclass(frozen=True)
class GuideLlm:
    """guidellm, in an environment of its own, and the folder for its results."""

    guidellm: Path
    files: ModelFiles
    folder: Path


@dataclass(frozen=True)
class ServingTurn:
    """What was answered, and processor seconds from the first request to the last answer."""

    held: HeldConversations
    cpu_s: Counter[str]  # by process of the server
    client_cpu_s: float
    foreign_cpu_s: float  # of all that is neither, resting servers included
    memory_mb: Counter[str]


@dataclass(frozen=True)
class ProcessorTimes:
    """Processor seconds until a moment by the wall clock, which is guidellm's."""

    at: float
    server: Counter[str]
    client: Counter[int]  # by process id: guidellm's processes come and go
    machine: float


def turn(client: GuideLlm, load: ConversationLoad, seed: int, server: LoadServer) -> ServingTurn:
    """Run the load once. Raises `PeerFailed` if guidellm does not come to its end."""
    server.settle()
    result = client.folder / "guidellm.json"
    result.unlink(missing_ok=True)
    asked = command(client.guidellm, load, server.asking.url, client.files, seed, result)
    with (client.folder / "guidellm.log").open("w+") as log:
        process = subprocess.Popen(asked, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=log, stderr=log)
        try:
            looks = _watch(process, lambda: _used(server, process.pid))
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        said = log.read()[-_SHOWN:].strip()
    if process.returncode != 0 or not result.exists():
        raise PeerFailed(f"guidellm at {server.name}: {said}")
    held = read(result, load)
    first, last = nearest(looks, held.began), nearest(looks, held.ended)
    cpu_s, client_cpu_s = last.server - first.server, (last.client - first.client).total()
    foreign_cpu_s = max(0.0, last.machine - first.machine - cpu_s.total() - client_cpu_s)
    rate = sum(request.output_tokens for request in held.requests) / held.seconds
    print(f"{server.name}: {rate:.1f} tokens/s, {held.num_failed} failed", file=sys.stderr, flush=True)
    return ServingTurn(held, cpu_s, client_cpu_s, foreign_cpu_s, server.memory_mb())


def nearest(looks: Sequence[ProcessorTimes], at: float) -> ProcessorTimes:
    return min(looks, key=lambda look: abs(look.at - at))


def _watch(process: "subprocess.Popen[bytes]", look: Callable[[], ProcessorTimes]) -> list[ProcessorTimes]:
    """Look until the process ends, or has taken too long."""
    looks = [look()]
    ends = time.monotonic() + LIMIT_S
    while process.poll() is None and time.monotonic() < ends:
        time.sleep(LOOK_S)
        looks.append(look())
    return looks


def _used(server: LoadServer, client: int) -> ProcessorTimes:
    machine = psutil.cpu_times()
    busy = machine.user + machine.nice + machine.system + machine.irq + machine.softirq
    return ProcessorTimes(time.time(), server.cpu_seconds(), _of_tree(client), busy)


def _of_tree(pid: int) -> Counter[int]:
    used: Counter[int] = Counter()
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                used[process.pid] = times.user + times.system
    return used
