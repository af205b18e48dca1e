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
from shared.step_profile import StepProfile
from tests.contract.cli.conftest import Prfaas
from tests.support.gateway import FINGERPRINT, ScriptedSuite, announce
from tests.support.suite import ROOT


def report(suite: ScriptedSuite, worker: str, **figures: object) -> None:
    base = {"running": 0, "waiting": 0, "kv_usage": 0.5, "speed_tokens_per_s": 0.0, "at_ms": 0}
    event = LoadEvent(worker=WorkerId(worker), epoch=Epoch(1), **{**base, **figures})  # type: ignore[arg-type]
    suite.parts.registry.apply_load(event, time.monotonic())


async def test_workers_pools_and_links_are_those_that_have_reported(suite: ScriptedSuite, prfaas: Prfaas) -> None:
    profile = StepProfile(base_s=0.5, token_s=0.001, pair_s=0.0, row_s=0.0, context_s=0.0, num_steps=9)
    report(suite, "decode-west", running=3, waiting=1, busy=0.25, queued_s=600.0)
    report(suite, "prefill-east", step_profile=profile, step_tokens=4096)
    report(suite, "cachepool-west", links=(LinkLoad(Datacenter("east"), 25e6, 0, 0, 0.04),))
    told = json.loads((await prfaas("status", "--json")).stdout)
    assert (told["is_serving"], told["model"], told["reasons"]) == (True, "tiny", [])
    decode, prefill = told["workers"]
    assert (decode["role"], decode["dc"], decode["num_workers"], decode["requests"]) == ("decode", "west", 1, 4)
    assert (decode["busy"], decode["prefill_2048_s"]) == (0.25, None)
    assert 500 < decode["queued_s"] <= 600  # the gateway counts on since the report
    assert (prefill["role"], prefill["dc"]) == ("prefill", "east")
    assert abs(prefill["prefill_2048_s"] - (0.5 + 2.048)) < 0.01
    assert [pool["name"] for pool in told["pools"]] == ["cachepool-east", "cachepool-west"]
    assert told["names"]["decode"] == ["decode-west"]
    (link,) = told["links"]
    assert (link["source"], link["target"], link["is_measured"]) == ("east", "west", True)
    done = await prfaas("status")
    assert done.exit_code == 0
    assert done.stdout.startswith("serving  tiny at http://127.0.0.1:")
    for words in ("decode", "25%", "cachepool-east", "MB/s", "40.0 ms"):
        assert words in done.stdout


async def test_a_gateway_that_cannot_serve_says_why_and_ends_with_1(suite: ScriptedSuite, prfaas: Prfaas) -> None:
    announce(suite.parts, "decode-west", "decode", "west", suite.decode.address, left=True)
    done = await prfaas("status")
    assert done.exit_code == 1
    assert done.stdout.startswith("not serving  ")
    assert "decode-west: has left" in done.stdout
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
            assert json.loads(await watching.stdout.readline())["problems"] == []
            announce(suite.parts, "decode-2", "decode", "west", "127.0.0.1:1", fingerprint="0" * len(FINGERPRINT))
            while not (told := json.loads(await watching.stdout.readline()))["problems"]:
                pass
            assert told["problems"][0].startswith("decode-2: serves another model")
            watching.send_signal(signal.SIGINT)
            await watching.communicate()
    finally:
        if watching.returncode is None:
            watching.kill()
            await watching.wait()
    assert watching.returncode == 0
