"""`prfaas status` against a gateway."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

from shared.bus.events import LinkLoad, LoadEvent
from shared.ids import Datacenter, Epoch, WorkerId
from tests.contract.cli.conftest import Prfaas
from tests.support.gateway import FINGERPRINT, ScriptedSuite, announce
from tests.support.suite import ROOT


def report(suite: ScriptedSuite, worker: str, **figures: object) -> None:
    base = {"running": 0, "waiting": 0, "kv_usage": 0.5, "speed_tokens_per_s": 0.0, "at_ms": 0}
    event = LoadEvent(worker=WorkerId(worker), epoch=Epoch(1), **{**base, **figures})  # type: ignore[arg-type]
    suite.parts.registry.apply_load(event, time.monotonic())


async def test_workers_pools_and_links_are_those_that_have_reported(suite: ScriptedSuite, prfaas: Prfaas) -> None:
    report(suite, "decode-west", running=3, waiting=1, busy=0.25, queued_s=1.5)
    report(suite, "cachepool-west", kv_usage=0.75, links=(LinkLoad(Datacenter("east"), 25e6, 0, 3_000_000, 0.04),))
    told = json.loads((await prfaas("status", "--json")).stdout)
    assert (told["is_serving"], told["model"], told["reasons"]) == (True, "tiny", [])
    workers = {worker["id"]: worker for worker in told["workers"]}
    assert workers.keys() == {"decode-west", "prefill-east"}
    decode = workers["decode-west"]
    assert (decode["role"], decode["dc"], decode["running"], decode["waiting"]) == ("decode", "west", 3, 1)
    assert "running" not in workers["prefill-east"]
    assert [pool["id"] for pool in told["pools"]] == ["cachepool-east", "cachepool-west"]
    report(suite, "decode-west", running=3, waiting=1, busy=0.25, queued_s=1.5)
    done = await prfaas("status")
    assert done.exit_code == 0
    assert done.stdout.startswith("serving  tiny at http://127.0.0.1:")
    for words in ("decode-west", "prefill-east", "25%", "1.50 s", "cachepool-east", "75%", "25.0 MB/s", "40.0 ms"):
        assert words in done.stdout


async def test_a_gateway_that_cannot_serve_says_why_and_ends_with_1(suite: ScriptedSuite, prfaas: Prfaas) -> None:
    announce(suite.parts, "decode-west", "decode", "west", suite.decode.address, left=True)
    done = await prfaas("status")
    assert done.exit_code == 1
    assert done.stdout.startswith("not serving  ")
    assert "decode-west: has left" in done.stdout
    assert "gone" in done.stdout
    assert json.loads((await prfaas("status", "--json")).stdout)["is_serving"] is False


async def test_watching_goes_on_until_ctrl_c(suite: ScriptedSuite, url: str) -> None:
    watching = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.cli", "status", "--watch", "--json", "--every-s", "0.1", "--gateway", url),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        limit=1 << 20,
    )
    assert watching.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert len(json.loads(await watching.stdout.readline())["workers"]) == 2
            announce(suite.parts, "decode-2", "decode", "west", "127.0.0.1:1", fingerprint="0" * len(FINGERPRINT))
            while len(told := json.loads(await watching.stdout.readline())["workers"]) == 2:
                pass
            (reason,) = [worker["reason"] for worker in told if worker["id"] == "decode-2"]
            assert reason.startswith("serves another model")
            watching.send_signal(signal.SIGINT)
            await watching.communicate()
    finally:
        if watching.returncode is None:
            watching.kill()
            await watching.wait()
    assert watching.returncode == 0
