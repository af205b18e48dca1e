"""The parts of the start-up benchmark that need no suite."""

import os
import subprocess
import sys

import psutil
import pytest

from benchmarks.client import RequestOutcome
from benchmarks.harness import Row
from benchmarks.startup import _latency_row, memory, memory_checks
from benchmarks.suite import _pass_on, _wait_until_ready


def run(program: str, **environment: str) -> subprocess.Popen[str]:
    env = {**os.environ, **environment}
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=env)


def test_a_suite_that_ends_without_being_ready_is_an_error_that_shows_why() -> None:
    with run("print('gateway ended unexpectedly')") as process, pytest.raises(RuntimeError, match="gateway ended"):
        _wait_until_ready(process)
    with run("print('starting'); print('ready after 1.0 s: ...')") as process:
        assert _wait_until_ready(process) > 0


def test_a_suite_that_warns_a_lot_does_not_stand_still(capsys: pytest.CaptureFixture[str]) -> None:
    with run("for _ in range(4000): print('gateway: warning: something is slow')") as process:
        _pass_on(process)
        assert process.wait() == 0
    assert capsys.readouterr().err.count("something is slow") == 4000


def test_memory_names_processes_by_their_worker_id() -> None:
    with run("import time; print('up', flush=True); time.sleep(30)", PRFAAS_WORKER_ID="gateway-west") as process:
        assert process.stdout is not None
        process.stdout.readline()
        rows = [row for row in memory(psutil.Process()) if row["process"] == "gateway-west"]
        process.kill()
    assert len(rows) == 1
    assert rows[0]["torch"] == "no"
    assert isinstance(rows[0]["rss_mb"], float)
    assert 1 < rows[0]["rss_mb"] < 100


def test_the_light_services_have_targets() -> None:
    rows: list[Row] = [
        {"process": "gateway-west", "rss_mb": 120.0, "torch": "no"},
        {"process": "cachepool-east", "rss_mb": 320.0, "torch": "yes"},
        {"process": "decode-west", "rss_mb": 900.0, "torch": "yes"},
    ]
    assert [check.met for check in memory_checks(rows)] == [True, True, False, False]


def test_a_latency_row_has_medians_with_their_spread() -> None:
    outcomes = [
        RequestOutcome(token_times_s=[ttft, ttft + 0.01, ttft + 0.03], cached_tokens=64) for ttft in (0.2, 0.1, 0.4)
    ]
    row = _latency_row(512, "cold", outcomes)
    assert (row["ttft_ms"], row["ttft_ms_low"], row["ttft_ms_high"]) == (200, 100, 400)
    assert row["itl_ms"] == 15
    assert row["cached_tokens"] == 64
