"""The commands against a suite of real processes with a tiny model, those of docs/cli.md among them."""

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.support.suite import ROOT, Suite
from tests.support.texts import real_text
from tests.support.waiting import LIMIT_S

pytestmark = [pytest.mark.suite, pytest.mark.timeout(180)]


BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/cli.md").read_text(), re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_of_the_page_work(suite: Suite, line: str) -> None:
    program = f'prfaas() {{ {shlex.quote(sys.executable)} -m deploy.cli "$@"; }}; {line}'
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PRFAAS_GATEWAY": suite.url},
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout


def prfaas(suite: Suite, *arguments: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", *arguments, "--gateway", suite.url],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environ},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


async def test_a_long_question_is_cached_when_it_is_asked_again(suite: Suite) -> None:
    question = real_text(1500)
    first, second = (
        json.loads(prfaas(suite, "chat", "--max-tokens", "4", "--temperature", "0", "--json", stdin=question).stdout)
        for _ in range(2)
    )
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] >= second["prompt_tokens"] - 64 > 1000
    assert second["text"] == first["text"]


async def test_the_status_names_everybody(suite: Suite) -> None:
    shown = prfaas(suite, "status").stdout
    assert all(name in shown for name in suite.services if name != "gateway")


async def test_a_request_can_be_traced(suite: Suite) -> None:
    answer = json.loads(prfaas(suite, "chat", real_text(1700, skip=9000), "--max-tokens", "4", "--json").stdout)
    shown = prfaas(suite, "trace", answer["id"]).stdout
    for words in ("prefill-east: computes", "decode-west: waits for layer 0", "decode-west: computes the tail"):
        assert words in shown


async def test_the_doctor_finds_a_suite_that_is_well_and_the_broker_that_is_not(suite: Suite) -> None:
    settings = {"PRFAAS_KAFKA": f"127.0.0.1:{suite.grpc['broker']}"}
    done = await asyncio.to_thread(prfaas, suite, "doctor", "--json", **settings)
    findings = {finding["what"]: finding for finding in json.loads(done.stdout)}
    for what in ("gateway", "kafka", "kafka of the gateway", "clock", "versions"):
        assert findings[what]["level"] == "ok", findings[what]
    assert "topics" in findings["kafka"]["why"]
    done = await asyncio.to_thread(prfaas, suite, "doctor", "--json", PRFAAS_KAFKA="127.0.0.1:1")
    findings = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert (done.returncode, findings["kafka"]["level"]) == (1, "fail")
