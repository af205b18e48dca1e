"""`prfaas doctor` against a gateway, without one, and without a broker."""

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from deploy.cli.doctor import cluster
from deploy.cli.doctor.finding import Finding, Level
from deploy.cli.gateway import GatewayClient
from shared.bus.connection import Instruments
from tests.contract.cli.conftest import Prfaas
from tests.support.gateway import FINGERPRINT, ScriptedSuite, announce


async def checked(check: Any, *arguments: Any) -> Finding:
    found: Finding = await asyncio.to_thread(check, *arguments)
    return found


@pytest.fixture
def nothing(tmp_path: Path) -> Path:
    (tmp_path / "Procfile").write_text("sleeper: sleep 1\n")
    return tmp_path / "Procfile"


async def test_all_is_well_with_a_gateway_that_serves(prfaas: Prfaas, nothing: Path) -> None:
    done = await prfaas("doctor", "--procfile", str(nothing), "--json")
    findings = {finding["what"]: finding for finding in json.loads(done.stdout)}
    for what in ("python", "packages", "settings", "gateway", "clock", "versions", "ports"):
        assert findings[what]["level"] == "ok", findings[what]
    assert "1 decode, 1 prefill, 2 cachepool" in findings["gateway"]["why"]


async def test_each_finding_is_a_line_and_what_to_do_another(
    suite: ScriptedSuite, prfaas: Prfaas, nothing: Path
) -> None:
    announce(suite.parts, "decode-west", "decode", "west", suite.decode.address, left=True)
    done = await prfaas("doctor", "--procfile", str(nothing))
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("fail  gateway ")]
    assert "decode-west: has left" in lines[at]
    assert lines[at + 1].startswith("      to do: look at the logs")


async def test_a_worker_that_cannot_be_used_is_a_warning(suite: ScriptedSuite, url: str) -> None:
    announce(suite.parts, "decode-2", "decode", "west", "127.0.0.1:1", fingerprint="0" * len(FINGERPRINT))
    finding = await checked(cluster.gateway, GatewayClient(url))
    assert finding.level is Level.WARN
    assert finding.why.startswith("decode-2: serves another model")


async def test_a_gateway_without_its_broker(suite: ScriptedSuite, url: str) -> None:
    assert (await checked(cluster.kafka_of_gateway, GatewayClient(url))).why == "the gateway says nothing of it"
    suite.health.set("kafka", ok=False, detail="not connected to broker:9092")
    finding = await checked(cluster.kafka_of_gateway, GatewayClient(url))
    assert (finding.level, finding.why) == (Level.FAIL, "not connected to broker:9092")
    suite.health.set("kafka", ok=True)
    assert (await checked(cluster.kafka_of_gateway, GatewayClient(url))).why == "connected"


def test_no_gateway() -> None:
    finding = cluster.gateway(GatewayClient("http://127.0.0.1:1"))
    assert finding.level is Level.FAIL
    assert "Connection refused" in finding.why
    assert not cluster.gateway_answers(GatewayClient("http://127.0.0.1:1"))


async def test_clocks_that_agree(url: str) -> None:
    assert (await checked(cluster.clock, GatewayClient(url))).level is Level.OK


async def test_another_version_and_events_that_could_not_be_read(suite: ScriptedSuite, url: str) -> None:
    installed = (await asyncio.to_thread(GatewayClient(url).json, "/version"))["version"]
    assert (await checked(cluster.versions, GatewayClient(url), installed)).level is Level.OK
    finding = await checked(cluster.versions, GatewayClient(url), "9.9.9")
    assert (finding.level, finding.why) == (Level.WARN, f"the gateway is {installed}, this command 9.9.9")
    Instruments(suite.metrics).skipped.labels("prfaas.load").inc(3)
    finding = await checked(cluster.versions, GatewayClient(url), installed)
    assert finding.level is Level.WARN
    assert "3 on prfaas.load" in finding.why


def test_a_dead_broker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        bootstrap = f"127.0.0.1:{mute.getsockname()[1]}"
        finding = cluster.kafka(bootstrap, is_needed=True)  # takes connections, says nothing
    assert finding.level is Level.FAIL
    for address in (bootstrap, "no port at all"):
        finding = cluster.kafka(address, is_needed=True)
        assert finding.level is Level.FAIL, finding
        assert f"no broker answers at {address}" in finding.why
        assert "PRFAAS_KAFKA" in finding.todo
    assert cluster.kafka(bootstrap, is_needed=False).level is Level.OK
