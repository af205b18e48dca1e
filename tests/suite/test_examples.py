"""Every example works as it stands, against a suite with a tiny model."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.suite import Suite, free_ports
from tests.support.texts import real_text
from tests.support.waiting import LIMIT_S, eventually

pytestmark = [pytest.mark.suite, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]
NODE = "cachepool-west-2"
TESTED = {"README.md", "keep_prefix.py", "openai_client.py", "second_node.sh", "stream.py"}


def run(name: str, suite: Suite, *arguments: str) -> str:
    command = [sys.executable, f"examples/{name}", "--url", suite.url, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_each_example_is_tested_here_and_listed() -> None:
    assert {path.name for path in (ROOT / "examples").iterdir() if path.is_file()} == TESTED
    readme = (ROOT / "examples/README.md").read_text()
    assert set(re.findall(r"examples/(\w+\.\w+)`", readme)) == TESTED - {"README.md"}


async def test_the_openai_client_chats(suite: Suite) -> None:
    output = run("openai_client.py", suite, real_text(300), "--max-tokens", "5")
    assert re.search(r"\n\[3\d\d prompt tokens, 0 of them cached\]\n$", output)
    assert re.search(
        r"\n\[3\d\d prompt tokens, [23]\d\d of them cached\]\n$", run("openai_client.py", suite, real_text(300))
    )


async def test_a_completion_is_streamed_with_the_standard_library(suite: Suite) -> None:
    assert run("stream.py", suite, "--max-tokens", "5").endswith("\n[5 tokens]\n")


async def test_a_kept_prefix_is_found_by_each_question(suite: Suite) -> None:
    lines = run("keep_prefix.py", suite).splitlines()
    kept, total = map(int, re.findall(r"(\d+) of (\d+) tokens are kept", lines[0])[0])
    assert total - 64 < kept <= total
    cached = [int(found) for found in re.findall(r"prompt tokens, (\d+) of them cached", "\n".join(lines))]
    assert len(cached) == 2
    assert min(cached) >= kept
    async with aiohttp.ClientSession() as session, session.get(f"{suite.url}/v1/prefixes") as response:
        assert (await response.json())["data"] == []


def answer_of(command: str, suite: Suite) -> dict[str, Any]:
    words = command.replace("http://127.0.0.1:8000", suite.url).split()
    done = subprocess.run(words, capture_output=True, timeout=LIMIT_S, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


async def test_the_command_of_the_controllers_page_shows_the_workers_of_the_suite(suite: Suite) -> None:
    everybody = {("decode", "west"), ("prefill", "west"), ("prefill", "east")}

    async def has_a_plan() -> bool:
        await suite.complete(real_text(300), 2)
        answer = answer_of("curl -s http://127.0.0.1:8000/v1/plan", suite)
        groups = {(group["role"], group["dc"]) for group in answer["measured"]["workers"]}
        return answer["current"] is not None and groups == everybody

    await eventually(has_a_plan)


@contextmanager
def second_node(suite: Suite) -> Iterator[None]:
    grpc_port, suite.http[NODE] = free_ports(2)
    settings = {
        "PRFAAS_KAFKA": f"127.0.0.1:{suite.grpc['broker']}",
        "PRFAAS_GRPC_PORT": str(grpc_port),
        "PRFAAS_HTTP_PORT": str(suite.http[NODE]),
        "PRFAAS_POOL_OBJECT_URL": "",
        "PYTHON": sys.executable,
    }
    with subprocess.Popen(["examples/second_node.sh"], cwd=ROOT, env={**os.environ, **settings}) as node:
        try:
            yield
        finally:
            node.send_signal(signal.SIGTERM)
    assert node.returncode == 0


async def test_a_second_node_takes_its_share(suite: Suite) -> None:
    places = iter(range(100))

    async def is_known() -> bool:
        async with aiohttp.ClientSession() as session, session.get(f"{suite.url}/health") as response:
            return NODE in str((await response.json())["workers"])

    async def has_blocks() -> bool:
        await suite.complete(await suite.tokenize(real_text(480, skip=1000 * next(places))), 1)
        return await suite.metric(NODE, "entries_published_total") > 0

    with second_node(suite):
        await eventually(is_known)
        await eventually(has_blocks)
