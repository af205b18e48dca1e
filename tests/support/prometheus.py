"""A real Prometheus for tests: its server, and its tool for rules. Debian's package has both."""

import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from deploy.reference import PLACES, instruments
from shared.metrics import PREFIX
from tests.support.suite import ROOT, free_ports
from tests.support.waiting import eventually

RULES = ROOT / "deploy/prometheus/rules"
SCRAPE_EVERY_S = 0.5

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not in PATH")
needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not in PATH")


def promtool(*arguments: str, cwd: Path = ROOT) -> str:
    """Run promtool; return what it says. Fails the test where promtool does."""
    done = subprocess.run(["promtool", *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"promtool {' '.join(arguments)}:\n{done.stdout}{done.stderr}"
    return done.stdout


def metrics_in(expr: str) -> set[str]:
    """Return the suite's metrics that a PromQL expression names, without their prefix, as they are exported."""
    return set(re.findall(rf"{PREFIX}(\w+)", expr))


@cache
def exported_names() -> frozenset[str]:
    """Return the names of all series that processes of the suite may export, without their prefix."""
    names: set[str] = set()
    for instrument in instruments([place for places in PLACES.values() for place in places]):
        ends = ("_bucket", "_sum", "_count") if instrument.kind == "histogram" else ("",)
        names |= {instrument.name + end for end in ends}
    return frozenset(names)


class Prometheus:
    """A server that is up."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    async def get(self, path: str, **params: str) -> Any:
        """Return the data of an answer. Fails where Prometheus finds an error, as in an expression."""
        async with self._session.get(f"{self._url}/api/v1/{path}", params=params) as response:
            answer = await response.json()
        assert answer["status"] == "success", f"{path} {params}: {answer}"
        return answer["data"]

    async def values(self, expr: str) -> list[float]:
        """Return the values that an expression has now, those that are not a number left out."""
        samples = (await self.get("query", query=expr))["result"]
        return [value for sample in samples if (value := float(sample["value"][1])) == value]


@asynccontextmanager
async def scraping(folder: Path, targets: Mapping[str, Sequence[tuple[str, str]]]) -> AsyncIterator[Prometheus]:
    """Run a server that reads `targets`: for each job the addresses of processes and their sites."""
    with _server(folder, targets) as (server, url):
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as session:
            await eventually(lambda: _is_ready(server, url, session))
            yield Prometheus(url, session)


@contextmanager
def _server(
    folder: Path, targets: Mapping[str, Sequence[tuple[str, str]]]
) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """Start a server; end it afterwards, whatever happens."""
    config = {
        "global": {"scrape_interval": f"{SCRAPE_EVERY_S * 1000:.0f}ms", "evaluation_interval": "1s"},
        "rule_files": [str(RULES / "*.yaml")],
        "scrape_configs": [
            {
                "job_name": job,
                "static_configs": [{"targets": [address], "labels": {"site": site}} for address, site in processes],
            }
            for job, processes in targets.items()
        ],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        yield server, f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(5)


async def _is_ready(server: "subprocess.Popen[bytes]", url: str, session: aiohttp.ClientSession) -> bool:
    assert server.poll() is None, f"prometheus has ended with {server.returncode}: see prometheus.log in its folder"
    try:
        async with session.get(f"{url}/-/ready") as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False
