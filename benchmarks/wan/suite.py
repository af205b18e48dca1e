"""The suite in two sites of a WAN: prefill and its pool in the east, all else in the west, where the user is.

Two gateways, one of which stores and forwards, send to the same engines: they can be asked in turn.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness import ROOT
from benchmarks.wan.network import Wan

EAST, WEST = "east", "west"
SITES = {
    "broker-west": WEST,
    "cachepool-east": EAST,
    "cachepool-west": WEST,
    "prefill-east": EAST,
    "decode-west": WEST,
    "gateway-west": WEST,
    "gateway-stored-west": WEST,  # the same suite, but decode begins when prefill has ended
}
GRPC_PORT, HTTP_PORT, BROKER_PORT = 7100, 7200, 19092
START_LIMIT_S = 90.0


class WanSuite:
    """Owns its processes. Ask it from inside the west: the thread must be there (`Wan.inside`)."""

    def __init__(
        self,
        network: Wan,
        folder: Path,
        environ: Mapping[str, str],
        gateways: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """`gateways` are more of them in the west, by name, with what sets each apart."""
        self._network = network
        self._folder = folder
        self._environ = environ
        self._gateways = {f"gateway-{name}-west": own for name, own in (gateways or {}).items()}
        self._sites = {**SITES, **dict.fromkeys(self._gateways, WEST)}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.url, self.stored_url = self._http("gateway-west"), self._http("gateway-stored-west")

    def gateway_url(self, name: str) -> str:
        """Return the URL of one of `gateways`."""
        return self._http(f"gateway-{name}-west")

    def grpc_address(self, name: str) -> str:
        """Return the address of one process's gRPC server."""
        return f"{self._network.address(self._sites[name])}:{GRPC_PORT + list(self._sites).index(name)}"

    def start(self) -> None:
        """Two datacenters share no cores: one is left to prefill, all else, the WAN included, keeps to the others."""
        first, *others = sorted(os.sched_getaffinity(0))
        self._network.keep_to(others or [first])
        for name, site in self._sites.items():
            command = [sys.executable, "-m", f"services.{name.partition('-')[0]}"]
            if name.startswith("broker"):
                host = self._network.address(site)
                command = [sys.executable, "-m", "deploy.devbroker", "--host", host, "--port", str(BROKER_PORT)]
            with (self._folder / f"{name}.log").open("wb") as log:
                self._processes[name] = subprocess.Popen(
                    [*self._network.command(site), *command], cwd=ROOT, env=self._env(name), stdout=log, stderr=log
                )
            if others and not name.startswith("prefill"):
                os.sched_setaffinity(self._processes[name].pid, others)

    def stop(self) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGINT)
        for process in self._processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)

    async def ready(self) -> None:
        """Wait until the gateway has a decode worker, and both engines and pools their buses. Raises RuntimeError."""
        names = [name for name in self._sites if not name.startswith("broker")]
        deadline = time.monotonic() + START_LIMIT_S
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(2)) as session:
            while names:
                if dead := [name for name, process in self._processes.items() if process.poll() is not None]:
                    raise RuntimeError(f"{dead[0]} ended:\n{self.log(dead[0])[-2000:]}")
                if time.monotonic() > deadline:
                    raise RuntimeError(f"not ready after {START_LIMIT_S:g} s: {', '.join(names)}")
                try:
                    async with session.get(f"{self._http(names[-1])}/readyz") as response:
                        if response.status == 200:
                            names.pop()
                            continue
                except (aiohttp.ClientError, TimeoutError):
                    pass
                await asyncio.sleep(0.1)

    async def metric(self, name: str, metric: str, **labels: str) -> float:
        """Return one metric of one process, summed over the labels that are not given."""
        async with aiohttp.ClientSession() as session, session.get(f"{self._http(name)}/metrics") as response:
            text = await response.text()
        samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
        return sum(s.value for s in samples if s.name == f"prfaas:{metric}" and labels.items() <= s.labels.items())

    def last_event(self, name: str, event: str) -> dict[str, Any]:
        """Return the last log line of that event. Raises LookupError."""
        for line in reversed(self.log(name).splitlines()):
            entry = json.loads(line) if line.startswith("{") else {}
            if entry.get("event") == event:
                found: dict[str, Any] = entry
                return found
        raise LookupError(f"{name} has logged no {event}")

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()

    def _http(self, name: str) -> str:
        return f"http://{self._network.address(self._sites[name])}:{HTTP_PORT + list(self._sites).index(name)}"

    def _env(self, name: str) -> dict[str, str]:
        site = self._sites[name]
        address, number = self._network.address(site), list(self._sites).index(name)
        own = {
            "PRFAAS_DC": site,
            "PRFAAS_WORKER_ID": name,
            "PRFAAS_GRPC_HOST": address,
            "PRFAAS_GRPC_PORT": str(GRPC_PORT + number),
            "PRFAAS_HTTP_HOST": address,
            "PRFAAS_HTTP_PORT": str(HTTP_PORT + number),
            "PRFAAS_KAFKA": f"{self._network.address(WEST)}:{BROKER_PORT}",
            "PRFAAS_POOL": self.grpc_address(f"cachepool-{site}"),
            "PRFAAS_DRAIN_S": "2",
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
        }
        if name == "gateway-stored-west":
            own["PRFAAS_HAND_OFF"] = "stored"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PRFAAS_")}
        return {**inherited, **own, **self._environ, **self._gateways.get(name, {})}


@contextmanager
def wan_suite(
    network: Wan, folder: Path, gateways: Mapping[str, Mapping[str, str]] | None = None, /, **environ: str
) -> Iterator[WanSuite]:
    """Start all processes with `environ` on top of the defaults; end them with the context."""
    suite = WanSuite(network, folder, environ, gateways)
    try:
        suite.start()
        yield suite
    finally:
        suite.stop()
