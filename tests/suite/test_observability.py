"""What an operator sees of a running suite: panels with data, rules that can be evaluated, one request in all logs."""

import asyncio
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from deploy.dashboards.__main__ import DASHBOARDS
from deploy.dashboards.panels import Query
from tests.support.checkpoints import served
from tests.support.prometheus import Prometheus, needs_prometheus, scraping
from tests.support.suite import ENGINES, POOLS, ROOT, Suite, running_suite
from tests.support.texts import real_text
from tests.support.waiting import LIMIT_S

pytestmark = [pytest.mark.suite, pytest.mark.timeout(300)]

PAGE = (ROOT / "docs/observability.md").read_text()
QUERIES = [query for dashboard in DASHBOARDS for panel in dashboard.panels for query in panel.queries]
RATE_INTERVAL = "30s"
"""As `$__rate_interval`: many scrapes of the test's Prometheus, all of them behind the first request."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    folder = tmp_path_factory.mktemp("observability")
    # Every request asks for a latency that it gets.
    slo = {"PRFAAS_SLO_TTFT_S": "100", "PRFAAS_SLO_TIME_PER_OUTPUT_TOKEN_S": "10"}
    with running_suite(folder, **served(folder), **slo) as suite:
        yield suite


@pytest.fixture
async def suite(running: Suite) -> Suite:
    await running.ready()
    return running


@needs_prometheus
async def test_every_panel_has_data_and_every_rule_can_be_evaluated(suite: Suite, tmp_path: Path) -> None:
    async with scraping(tmp_path, targets(suite)) as prometheus:
        asking = asyncio.create_task(ask_for_ever(suite))
        try:
            await all_have_data(prometheus, [query for query in QUERIES if not query.absent], asking)
        finally:
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking
        for query in QUERIES:
            await prometheus.values(expr_of(query))  # raises where an expression is wrong
        rules = [rule for group in (await prometheus.get("rules"))["groups"] for rule in group["rules"]]
        assert rules
        assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}


async def test_one_request_is_found_in_the_logs_of_all_services(suite: Suite, tmp_path: Path) -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq is not in PATH")
    request_id = "follow-me"
    body = {"prompt": f"{request_id} {real_text(3000)}", "max_tokens": 4, "ignore_eos": True}
    headers = {"X-Request-Id": request_id}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{suite.url}/v1/completions", json=body, headers=headers) as response,
    ):
        assert response.status == 200, await response.text()
        assert response.headers["X-Request-Id"] == request_id
    (tmp_path / ".run").mkdir()
    (tmp_path / ".run/logs").symlink_to(suite.folder)
    (command,) = re.findall(r"^cat \.run/logs.*(?:\n  .*)*", PAGE, re.MULTILINE)
    wanted = set(re.findall(r"^\| (\w+) \| `(\w+)` \|", PAGE, re.MULTILINE))
    assert len(wanted) == 6
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    while True:  # the pools' lines may come after the answer
        lines = await found(command, request_id, tmp_path)
        seen = {(line["service"], line["event"]) for line in lines}
        if seen >= wanted and {line["dc"] for line in lines if line["service"] == "cachepool"} == {"east", "west"}:
            break
        assert asyncio.get_running_loop().time() < deadline, f"not in the logs: {wanted - seen}\n{lines}"
        await asyncio.sleep(0.1)
    assert {line["request_id"] for line in lines} == {request_id}
    for event in ("publish_served", "fetch_served"):
        assert sum(line["num_entries"] for line in lines if line["event"] == event) > 0
    times = [line["timestamp"] for line in lines]
    assert times == sorted(times)


async def found(command: str, request_id: str, folder: Path) -> list[dict[str, Any]]:
    """Run the command of the page; return the lines that it prints."""
    process = await asyncio.create_subprocess_shell(
        command, cwd=folder, env={**os.environ, "ID": request_id}, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    return [json.loads(line) for line in output.splitlines()]


def targets(suite: Suite) -> dict[str, list[tuple[str, str]]]:
    """Return the addresses and sites of all processes, by service."""
    jobs: dict[str, list[tuple[str, str]]] = {}
    for name, site in {**POOLS, **ENGINES, "gateway": "west"}.items():
        jobs.setdefault(name.partition("-")[0], []).append((f"127.0.0.1:{suite.http[name]}", site))
    return jobs


def expr_of(query: Query) -> str:
    return query.expr.replace("$__rate_interval", RATE_INTERVAL)


async def ask_for_ever(suite: Suite) -> None:
    """Ask prompts that are new, each again, and short ones: computed elsewhere, found, and computed by decode."""
    for number in itertools.count():
        prompt = f"{number} {real_text(2000)}"
        await suite.complete(prompt, 12)
        await asyncio.gather(*(suite.complete(text, 12) for text in (prompt, "A short one.", f"{number} is short.")))


async def all_have_data(
    prometheus: Prometheus, queries: list[Query], asking: "asyncio.Task[None]", limit_s: float = 120
) -> None:
    """Wait until each query has had a value that is a number, while somebody asks the suite."""
    deadline = asyncio.get_running_loop().time() + limit_s
    while queries := [query for query in queries if not await prometheus.values(expr_of(query))]:
        if asking.done():
            asking.result()
        texts = "\n".join(query.expr for query in queries)
        assert asyncio.get_running_loop().time() < deadline, f"no data for\n{texts}"
        await asyncio.sleep(1)
