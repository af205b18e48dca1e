"""The suite in two sites of a WAN: prefill and its pool in the east, all else in the west, where the user is.

A `Layout` says which processes there are. In the usual one, two gateways, one of which stores and forwards, send to the
same engines: they can be asked in turn.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness import ROOT
from benchmarks.wan.network import Wan
from benchmarks.wan.share import PERIOD_US, held_to

EAST, WEST = "east", "west"
USUAL = (
    "broker-west",
    "cachepool-east",
    "cachepool-west",
    "prefill-east",
    "decode-west",
    "gateway-west",
    "gateway-stored-west",  # the same suite, but decode begins when prefill has ended
)
GRPC_PORT, HTTP_PORT, BROKER_PORT = 7100, 7200, 19092
START_LIMIT_S = 90.0


@dataclass(frozen=True)
class Layout:
    """Which processes there are: named by service, what tells them apart, and datacenter.

    Two datacenters share no cores: the first is left to prefill, all else, the WAN included, keeps to the others.
    """

    names: Sequence[str] = USUAL  # a broker in the west among them, and a pool in each datacenter
    environ: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by name, on top of everybody's
    cores: Mapping[str, Sequence[int]] = field(default_factory=dict)  # by name, those that differ from the rule
    shares: Mapping[str, float] = field(default_factory=dict)  # of a core's time that a process gets at most
    period_us: int = PERIOD_US  # in which a process gets its share
    has_wan: bool = True  # else all are on one host, in the west, whatever their datacenter

    def site(self, name: str) -> str:
        return datacenter(name) if self.has_wan else WEST


def usual_layout(gateways: Mapping[str, Mapping[str, str]] | None = None) -> Layout:
    """Return the usual processes, and `gateways`: more of them in the west, by name, with what sets each apart."""
    more = {f"gateway-{name}-west": own for name, own in (gateways or {}).items()}
    return Layout((*USUAL, *more), {"gateway-stored-west": {"PRFAAS_HAND_OFF": "stored"}, **more})


def datacenter(name: str) -> str:
    """Return the datacenter that a process is in."""
    return name.rpartition("-")[2]


class WanSuite:
    """Owns its processes. Ask it from inside the west: the thread must be there (`Wan.inside`)."""

    def __init__(self, network: Wan, folder: Path, environ: Mapping[str, str], layout: Layout) -> None:
        self._network = network
        self._folder = folder
        self._environ = environ
        self._layout = layout
        self._stack = ExitStack()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.url, self.stored_url = self.http_url("gateway-west"), self.http_url("gateway-stored-west")

    def gateway_url(self, name: str) -> str:
        """Return the URL of one of `gateways`."""
        return self.http_url(f"gateway-{name}-west")

    def grpc_address(self, name: str) -> str:
        """Return the address of one process's gRPC server."""
        return f"{self._address(name)}:{GRPC_PORT + self._layout.names.index(name)}"

    def start(self) -> None:
        first, *others = sorted(os.sched_getaffinity(0))
        rest = others or [first]
        self._network.keep_to(rest)
        for name in self._layout.names:
            command = [sys.executable, "-m", f"services.{name.partition('-')[0]}"]
            if name.startswith("broker"):
                host = self._address(name)
                command = [sys.executable, "-m", "deploy.devbroker", "--host", host, "--port", str(BROKER_PORT)]
            with (self._folder / f"{name}.log").open("wb") as log:
                process = self._processes[name] = subprocess.Popen(
                    [*self._network.command(self._layout.site(name)), *command],
                    cwd=ROOT,
                    env=self._env(name),
                    stdout=log,
                    stderr=log,
                )
            usual = [first] if name.startswith("prefill") else rest
            os.sched_setaffinity(process.pid, self._layout.cores.get(name, usual))
            if (share := self._layout.shares.get(name)) is not None:
                self._stack.enter_context(held_to(process.pid, share, self._layout.period_us))

    def stop(self) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGINT)
        for process in self._processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)
        self._stack.close()

    async def ready(self) -> None:
        """Wait until the gateway has a decode worker, and both engines and pools their buses. Raises RuntimeError."""
        names = [name for name in self._layout.names if not name.startswith("broker")]
        deadline = time.monotonic() + START_LIMIT_S
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(2)) as session:
            while names:
                if dead := [name for name, process in self._processes.items() if process.poll() is not None]:
                    raise RuntimeError(f"{dead[0]} ended:\n{self.log(dead[0])[-2000:]}")
                if time.monotonic() > deadline:
                    raise RuntimeError(f"not ready after {START_LIMIT_S:g} s: {', '.join(names)}")
                try:
                    async with session.get(f"{self.http_url(names[-1])}/readyz") as response:
                        if response.status == 200:
                            names.pop()
                            continue
                except (aiohttp.ClientError, TimeoutError):
                    pass
                await asyncio.sleep(0.1)

    async def metric(self, name: str, metric: str, **labels: str) -> float:
        """Return one metric of one process, summed over the labels that are not given."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.http_url(name)}/metrics") as response:
            text = await response.text()
        samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
        return sum(s.value for s in samples if s.name == f"prfaas:{metric}" and labels.items() <= s.labels.items())

    def last_event(self, name: str, event: str) -> dict[str, Any]:
        """Return the last log line of that event. Raises LookupError."""
        found = [entry for entry in self.events(name) if entry["event"] == event]
        if found:
            return found[-1]
        raise LookupError(f"{name} has logged no {event}")

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return all log lines of one process, as far as they are written: the last may be half there."""
        whole, _, _ = self.log(name).rpartition("\n")
        return [json.loads(line) for line in whole.split("\n") if line.startswith("{")]

    def events_by_request(self, name: str) -> dict[tuple[str, str], dict[str, Any]]:
        """Return what one process has logged of requests, by their id and the event."""
        return {(entry["request_id"], entry["event"]): entry for entry in self.events(name) if "request_id" in entry}

    def cpu_s(self, name: str) -> float:
        """Return the CPU time that one process has used."""
        times = psutil.Process(self._processes[name].pid).cpu_times()
        return float(times.user + times.system)

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()

    def http_url(self, name: str) -> str:
        """Return the URL of one process; empty if there is none of that name."""
        names = self._layout.names
        return f"http://{self._address(name)}:{HTTP_PORT + names.index(name)}" if name in names else ""

    def _address(self, name: str) -> str:
        return self._network.address(self._layout.site(name))

    def _env(self, name: str) -> dict[str, str]:
        dc, address, number = datacenter(name), self._address(name), self._layout.names.index(name)
        own = {
            "PRFAAS_DC": dc,
            "PRFAAS_WORKER_ID": name,
            "PRFAAS_GRPC_HOST": address,
            "PRFAAS_GRPC_PORT": str(GRPC_PORT + number),
            "PRFAAS_HTTP_HOST": address,
            "PRFAAS_HTTP_PORT": str(HTTP_PORT + number),
            "PRFAAS_ALLOW_ANONYMOUS": "true",
            "PRFAAS_KAFKA": f"{self._address('broker-west')}:{BROKER_PORT}",
            "PRFAAS_POOL": self.grpc_address(f"cachepool-{dc}"),
            "PRFAAS_ALLOW_PLAINTEXT": "yes",  # between network namespaces of this machine
            "PRFAAS_DRAIN_S": "2",
            "PRFAAS_PROFILE_DIR": str(self._folder / f"{name}-profile"),  # others have other shares of their cores
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
        }
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PRFAAS_")}
        return {**inherited, **own, **self._environ, **self._layout.environ.get(name, {})}


@contextmanager
def log_folder(kept: Path | None) -> Iterator[Path]:
    """Make a folder for the processes' logs: `kept`, or one that goes with the context."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextmanager
def wan_suite(network: Wan, folder: Path, layout: Layout | None = None, /, **environ: str) -> Iterator[WanSuite]:
    """Start all processes with `environ` on top of the defaults; end them with the context."""
    suite = WanSuite(network, folder, environ, usual_layout() if layout is None else layout)
    try:
        suite.start()
        yield suite
    finally:
        suite.stop()
