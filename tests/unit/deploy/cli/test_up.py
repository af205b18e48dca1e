"""`prfaas up`: looks first, prepares the model, and ends as the supervisor ends."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.processes import processes_of
from tests.support.suite import ROOT
from tests.support.waiting import LIMIT_S

SLEEPER = "exec python -c 'import time; print(1, flush=True); time.sleep(60)'"


def start(folder: Path, procfile: str | None, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    path = folder / "Procfile"
    if procfile is not None:
        path.write_text(procfile)
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", "up", "--procfile", str(path), "--logs", str(folder / "logs"), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TEST_FOLDER": str(folder), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_log(folder: Path) -> None:
    """Wait until the process `a` runs: before, a signal ends the command alone."""
    give_up_at = time.monotonic() + LIMIT_S
    while not (log := folder / "logs/a.log").exists() or not log.read_text():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    return process.returncode, output


def test_it_runs_the_procfile_until_it_is_asked_to_stop(tmp_path: Path) -> None:
    process = start(tmp_path, f"a: {SLEEPER}\n")
    assert process.stdout is not None
    assert process.stdout.readline() == f"starting a; logs are in {tmp_path}/logs\n"
    wait_for_log(tmp_path)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (0, "stopping …\n")
    assert not processes_of(tmp_path)


def test_a_suite_that_is_given_up_is_a_failure(tmp_path: Path) -> None:
    code, output = ended(start(tmp_path, "a: echo bad settings; exit 2\n"))
    assert code == 1
    assert "starting it again would not help" in output


@pytest.mark.parametrize(("procfile", "told"), [(None, "no such file"), ("nonsense\n", "line 1 is not")])
def test_a_procfile_that_cannot_be_read(tmp_path: Path, procfile: str | None, told: str) -> None:
    code, output = ended(start(tmp_path, procfile))
    assert code == 2
    assert output.startswith(f"prfaas: {tmp_path}/Procfile: {told}")


def test_a_port_that_is_taken_is_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        procfile = f"a: exec env PRFAAS_HTTP_PORT=${{GATEWAY_PORT:-1}} {SLEEPER.removeprefix('exec ')}\n"
        code, output = ended(start(tmp_path, procfile, "--port", str(port)))
        assert code == 1
        assert output.startswith(f"prfaas: the suite cannot start:\n  ports: taken: {port} of a: ")
        assert not (tmp_path / "logs").exists()
        unchecked = start(tmp_path, procfile, "--port", str(port), "--no-check")
        assert unchecked.stdout is not None
        assert unchecked.stdout.readline().startswith("starting a")
        wait_for_log(tmp_path)
        unchecked.send_signal(signal.SIGTERM)
        assert ended(unchecked)[0] == 0


def test_a_suite_that_runs_already_is_told_with_whom_to_end(tmp_path: Path) -> None:
    listen = (
        'import socket, time; s = socket.create_server(("127.0.0.1", 0)); '
        "print(s.getsockname()[1], flush=True); time.sleep(60)"
    )
    first = start(tmp_path, f"a: exec python -c '{listen}' deploy.devbroker\n")
    try:
        wait_for_log(tmp_path)
        port = (tmp_path / "logs/a.log").read_text().strip()
        (tmp_path / "second").mkdir()
        code, output = ended(start(tmp_path / "second", f"a: exec env PRFAAS_GRPC_PORT={port} sleep 1\n"))
        assert code == 1
        assert "1 of 1 ports are held by a suite that runs" in output
        assert output.endswith(f"kill {first.pid}\n")
    finally:
        first.send_signal(signal.SIGTERM)
        assert ended(first)[0] == 0


def test_bad_settings_are_told_before_anything_starts(tmp_path: Path) -> None:
    code, output = ended(start(tmp_path, "a: exec python -m services.cachepool\n", PRFAAS_POOL_BYTES="many"))
    assert code == 1
    assert "settings: PRFAAS_POOL_BYTES: " in output
    assert "starting" not in output


def test_a_model_that_is_not_there_is_told_before_anything_starts(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.gguf")
    code, output = ended(start(tmp_path, "a: exec python -m services.prefill\n", "--model", missing))
    assert code == 1
    assert output.splitlines()[0].startswith(f"{missing}: ")
    assert output.splitlines()[1] == "prfaas: the model could not be prepared; the lines above say why"


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_up_is_this_command() -> None:
    command = ["make", "--dry-run", "--no-print-directory", "up"]
    dry = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert dry.stdout.splitlines()[-1] == "exec .venv/bin/prfaas up"
