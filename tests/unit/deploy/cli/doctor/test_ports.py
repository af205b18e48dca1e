"""Ports that are taken, by whom."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from deploy.cli.doctor.finding import Level
from deploy.cli.doctor.ports import ports, ports_of
from deploy.up.environment import PROCFILE
from deploy.up.procfile import parse_procfile
from tests.support.suite import free_ports


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_the_ports_of_the_procfile_are_those_that_its_processes_listen_on() -> None:
    found = ports_of(parse_procfile(PROCFILE.read_text()), {})
    assert found[19092] == "broker"
    assert found[8000] == "gateway"
    assert set(found.values()) >= {"cachepool-east", "prefill-west", "decode-west"}
    moved = ports_of(parse_procfile(PROCFILE.read_text()), {"GATEWAY_PORT": "9000"})
    assert (moved[9000], 8000 in moved) == ("gateway", False)


def test_any_port_and_no_port_are_no_fixed_ports() -> None:
    assert ports_of({"a": "exec env PRFAAS_GRPC_PORT=0 run", "b": "run"}, {}) == {}
    assert ports({}, is_running_fine=False).why == "no fixed ports"


def test_free_ports_are_fine() -> None:
    assert ports(dict.fromkeys(free_ports(2), "a"), is_running_fine=False).level is Level.OK


@pytest.mark.parametrize("is_running_fine", [True, False])
def test_a_port_that_another_program_has_is_told_with_the_program(taken: int, is_running_fine: bool) -> None:
    (free,) = free_ports(1)
    finding = ports({taken: "gateway", free: "broker"}, is_running_fine=is_running_fine)
    assert finding.level is Level.FAIL
    assert finding.why.startswith(f"taken: {taken} of gateway: ")
    assert finding.why.endswith(f"(pid {os.getpid()})")
    assert finding.todo.startswith(f"stop what holds them (kill {os.getpid()}), or ")
    assert "GATEWAY_PORT" in finding.todo


def test_a_port_that_a_suite_of_ours_has_is_fine_while_it_runs() -> None:
    code = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); "
    code += "print(s.getsockname()[1], flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, "services.gateway"], stdout=subprocess.PIPE) as ours:
        try:
            assert ours.stdout is not None
            port = int(ours.stdout.readline())
            assert ports({port: "gateway"}, is_running_fine=True).level is Level.OK
            finding = ports({port: "gateway"}, is_running_fine=False)
        finally:
            ours.kill()
    assert finding.level is Level.FAIL
    assert finding.why == "1 of 1 ports are held by a suite that runs"
    assert finding.todo.endswith(f"kill {ours.pid}")
