"""The whole suite as real processes on free ports: what `make up` runs, under a test's control."""

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from deploy.up.trust import is_encrypted, reached, trust
from tests.support.waiting import LIMIT_S, eventually

ROOT = Path(__file__).resolve().parents[2]
POOLS = {"cachepool-east": "east", "cachepool-west": "west"}
ENGINES = {"prefill-east": "east", "prefill-west": "west", "decode-west": "west"}
SERVICES = (*POOLS, *ENGINES, "gateway")

NUM_PORT_RANGES, PORTS_IN_RANGE = 8, 2_000

_HELD_BY_POOLS = ("leases_held", "writers_open")
_HELD_BY_ENGINES = ("kv_reservations_held", "num_requests_running", "num_requests_waiting")

_ENDS_WITH_US = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
"""A worker of pytest that is interrupted runs no fixture's end."""


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, below those that the kernel gives to whoever asks for any.

    Workers of pytest have ranges of their own: what one has been given may be free for a while, before its process
    listens and while it is started again.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 16_000 + worker % NUM_PORT_RANGES * PORTS_IN_RANGE
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(first, first + PORTS_IN_RANGE)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            if port not in ports:
                ports.append(port)
    return ports


class RefusedError(Exception):
    """A completion that was not answered."""

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(f"{status}: {error}")
        self.status = status


class Suite:
    """Owns its processes: `stop` ends them all, by pid."""

    def __init__(self, folder: Path, environ: dict[str, str], services: Sequence[str] = SERVICES) -> None:
        names = ("broker", *services)
        self.services = services
        self._gateways = [name for name in services if name.startswith("gateway")]
        self._others = [name for name in services if not name.startswith("gateway")]
        ports = free_ports(2 * len(names))
        self.folder = folder
        self.grpc = dict(zip(names, ports[: len(names)], strict=True))
        self.http = dict(zip(names, ports[len(names) :], strict=True))
        self._environ = environ
        self.url = self.url_of(self._gateways[0])
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def url_of(self, name: str) -> str:
        return reached(f"http://127.0.0.1:{self.http[name]}", self._environ)

    def session(self) -> aiohttp.ClientSession:
        """Return a client that trusts the suite, and is trusted, as its certificates are now."""
        tls = trust(self._environ) if is_encrypted(self._environ) else True
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls))

    def start(self, *names: str) -> None:
        """Start the named processes (default: all); returns at once."""
        for name in names or ("broker", *self.services):
            with (self.folder / f"{name}.log").open("ab") as log:
                self._processes[name] = subprocess.Popen(
                    [*_ENDS_WITH_US, *self._command(name)],
                    cwd=ROOT,
                    env=self._env(name),
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )

    def kill(self, name: str) -> None:
        """SIGKILL one process and wait until it is gone."""
        self._processes[name].send_signal(signal.SIGKILL)
        self._processes[name].wait(10)

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    @property
    def running(self) -> list[str]:
        return [name for name, process in self._processes.items() if process.poll() is None]

    def run_once(self, name: str, **environ: str) -> tuple[int, str]:
        """Run one more process of a service, with `environ`, until it ends; return its exit code and its output."""
        done = subprocess.run(
            self._command(name),
            cwd=ROOT,
            env={**self._env(name), **environ},
            capture_output=True,
            timeout=120,
            check=False,
        )
        return done.returncode, (done.stdout + done.stderr).decode()

    def stop(self) -> dict[str, int]:
        """Ask all to stop, wait, kill what did not obey; return the exit codes."""
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        codes = {}
        for name, process in self._processes.items():
            try:
                codes[name] = process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                codes[name] = process.wait(5)
        return codes

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    async def ready(self, limit_s: float = 3 * LIMIT_S) -> float:
        """Wait until the broker listens, all processes are ready and the gateways know them; return the seconds.

        Gateways come last: of a process that was killed a moment ago they still have good news.
        """
        started = time.monotonic()
        if "broker" in self.running:
            await eventually(self._broker_listens, limit_s)
        urls = [f"{self.url_of(name)}/health" for name in self._gateways]
        urls += [f"{self.url_of(name)}/readyz" for name in self._others]
        async with self.session() as session:
            while urls:
                self._fail_if_dead()
                assert time.monotonic() - started < limit_s, f"not ready: {urls}\n{self._last_lines()}"
                try:
                    async with session.get(urls[-1], timeout=aiohttp.ClientTimeout(2)) as response:
                        if response.status == 200 and self._knows_all(await response.json()):
                            urls.pop()
                            continue
                except (aiohttp.ClientError, TimeoutError):
                    pass
                await asyncio.sleep(0.1)
        return time.monotonic() - started

    async def metric(self, name: str, metric: str, **labels: str) -> float:
        """Return one metric of one process, summed over the labels that are not given; 0 when it is not there."""
        total = 0.0
        async with (
            self.session() as session,
            session.get(f"{self.url_of(name)}/metrics") as response,
        ):
            for family in text_string_to_metric_families(await response.text()):
                for sample in family.samples:
                    if sample.name == f"prfaas:{metric}" and labels.items() <= sample.labels.items():
                        total += sample.value
        return total

    async def complete(
        self, prompt: str | list[int], max_tokens: int = 8, url: str | None = None, **fields: Any
    ) -> dict[str, Any]:
        """Ask for a greedy completion, not streamed; return the JSON answer. Raises `RefusedError`."""
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, **fields}
        async with (
            self.session() as session,
            session.post(f"{url or self.url}/v1/completions", json=body) as response,
        ):
            answer: dict[str, Any] = await response.json()
            if response.status != 200:
                raise RefusedError(response.status, answer["error"])
            return answer

    async def tokenize(self, text: str) -> list[int]:
        async with (
            self.session() as session,
            session.post(f"{self.url}/tokenize", json={"prompt": text}) as response,
        ):
            tokens: list[int] = (await response.json())["tokens"]
            return tokens

    async def assert_idle(self, within_s: float = LIMIT_S) -> None:
        """Check that within `within_s` no running engine has a request or holds pages, and no pool a lease."""
        deadline = time.monotonic() + within_s
        while True:
            workers = [name for name in self._others if name in self.running]
            held: dict[str, float] = {}
            for name in workers:
                for metric in _HELD_BY_POOLS if name.startswith("cachepool") else _HELD_BY_ENGINES:
                    held[f"{metric} of {name}"] = await self.metric(name, metric)
            if not any(held.values()):
                return
            assert time.monotonic() < deadline, f"still held: {held}"
            await asyncio.sleep(0.02)

    async def logged(self, name: str, event: str, request_id: str) -> dict[str, Any]:
        """Wait until a process has logged an event of a request, which may be after the answer; return it."""
        found: list[dict[str, Any]] = []

        async def is_there() -> bool:
            lines = [json.loads(line) for line in self.log(name).splitlines() if line.startswith("{") and event in line]
            found[:] = [line for line in lines if (line["event"], line.get("request_id")) == (event, request_id)]
            return bool(found)

        await eventually(is_there)
        return found[-1]

    def _command(self, name: str) -> list[str]:
        if name == "broker":
            return [sys.executable, "-m", "deploy.devbroker", "--port", str(self.grpc["broker"])]
        return [sys.executable, "-m", f"services.{name.split('-')[0]}"]

    def _env(self, name: str) -> dict[str, str]:
        _, dc, *_ = *name.split("-"), "west"
        own = {
            "PRFAAS_DC": dc,
            "PRFAAS_WORKER_ID": name,
            "PRFAAS_GRPC_PORT": str(self.grpc[name]),
            "PRFAAS_HTTP_PORT": str(self.http[name]),
            "PRFAAS_KAFKA": f"127.0.0.1:{self.grpc['broker']}",
            "PRFAAS_POOL": f"127.0.0.1:{self.grpc.get(f'cachepool-{dc}', 0)}",
            "PRFAAS_DRAIN_S": "2",
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": str(ROOT),
        }
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PRFAAS_")}
        # Prefill is what is tested, and a test does not wait for memory that it does not use.
        rule = {"PRFAAS_ROUTING_POLICY": "threshold", "PRFAAS_DECODE_THRESHOLD_TOKENS": "0"}
        return {**inherited, **rule, "PRFAAS_POOL_AHEAD_BYTES": "8MiB", **own, **self._environ}

    def _knows_all(self, answer: dict[str, Any]) -> bool:
        """Check that a gateway's /health names every service that runs; what the others say needs no check."""
        if "workers" not in answer:
            return True
        known = {name for names in answer["workers"].values() for name in names}
        return known.issuperset(name for name in self._others if name in self.running)

    async def _broker_listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.grpc["broker"])
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    def _fail_if_dead(self) -> None:
        dead = {name: p.returncode for name, p in self._processes.items() if p.poll() is not None}
        assert not dead, f"ended: {dead}\n{self._last_lines()}"

    def _last_lines(self) -> str:
        return "\n".join(f"--- {name}\n{self.log(name)[-1500:]}" for name in self._processes)


@contextmanager
def running_suite(folder: Path, services: Sequence[str] = SERVICES, **environ: str) -> Iterator[Suite]:
    """Start all processes with `environ` on top of the defaults; end them afterwards, whatever happens."""
    suite = Suite(folder, environ, services)
    try:
        suite.start()
        yield suite
    finally:
        suite.stop()
