"""deploy.up with real processes: quiet while all is well, loud and truthful when it is not, nothing left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.up import environment, warning_of
from tests.support.waiting import LIMIT_S

ROOT = Path(__file__).resolve().parents[3]
SLEEPER = "exec python -c 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'"
STUBBORN = (
    "exec python -c 'import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    " print(os.getpid(), flush=True); time.sleep(60)'"
)


class Running:
    """A suite of a Procfile of our own, as `make up` would run it."""

    def __init__(self, folder: Path, procfile: str) -> None:
        (folder / "Procfile").write_text(procfile)
        self.logs = folder / "logs"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deploy.up", "--procfile", str(folder / "Procfile"), "--logs", str(self.logs)],
            cwd=ROOT,
            env={**os.environ, "TEST_FOLDER": str(folder)},  # inherited: finds what is left behind
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def pid_of(self, name: str) -> int:
        log = self.logs / f"{name}.log"
        give_up_at = time.monotonic() + LIMIT_S
        while time.monotonic() < give_up_at:
            if log.exists() and (text := log.read_text()).endswith("\n"):
                return int(text.split()[0])
            time.sleep(0.02)
        raise AssertionError(f"{name} wrote nothing")

    def end(self, timeout_s: float = LIMIT_S) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, output


def gone(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return False
    return True


@pytest.fixture
def suites() -> Iterator[list[Running]]:
    started: list[Running] = []
    yield started
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
            running.process.communicate()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_that_was_asked_for_ends_all_with_code_0(
    tmp_path: Path, suites: list[Running], signum: signal.Signals
) -> None:
    suites.append(running := Running(tmp_path, f"a: {SLEEPER}\nb: {SLEEPER}\n"))
    pids = [running.pid_of("a"), running.pid_of("b")]
    running.process.send_signal(signum)
    code, output = running.end()
    assert code == 0, output
    assert "stopping" in output
    assert "unexpectedly" not in output
    assert all(gone(pid) for pid in pids)


def test_a_signal_during_the_start_is_not_lost(tmp_path: Path, suites: list[Running]) -> None:
    suites.append(running := Running(tmp_path, "".join(f"p{i}: {SLEEPER}\n" for i in range(4))))
    assert running.process.stdout is not None
    assert running.process.stdout.readline().startswith("starting p0, p1")
    time.sleep(0.01)
    running.process.send_signal(signal.SIGINT)
    code, output = running.end()
    assert code in {0, -signal.SIGINT}, output
    assert not processes_of(tmp_path)


@pytest.mark.parametrize("exit_code", [0, 3])
def test_a_process_that_ends_by_itself_stops_the_suite_and_is_named(
    tmp_path: Path, suites: list[Running], exit_code: int
) -> None:
    crash = f"until test -s {tmp_path}/logs/good.log; do sleep 0.1; done; echo out of luck; exit {exit_code}"
    suites.append(running := Running(tmp_path, f"good: {SLEEPER}\nbad: {crash}\n"))
    pid = running.pid_of("good")
    code, output = running.end()
    assert code == 1
    assert f"bad ended unexpectedly (exit code {exit_code})" in output
    assert "out of luck" in output
    assert gone(pid)


def test_a_process_that_ignores_the_request_is_killed_and_named(tmp_path: Path, suites: list[Running]) -> None:
    suites.append(running := Running(tmp_path, f"stubborn: {STUBBORN}\n"))
    pid = running.pid_of("stubborn")
    running.process.send_signal(signal.SIGINT)
    code, output = running.end()
    assert code == 1
    assert "stubborn did not stop cleanly (exit code -9)" in output
    assert gone(pid)


def test_only_warnings_and_the_ready_line_reach_the_console(tmp_path: Path, suites: list[Running]) -> None:
    lines = ['{"level": "info", "event": "hello"}', '{"level": "warning", "event": "careful", "error": "E"}', "plain"]
    chatter = f"printf '%s\\n' {' '.join(repr(line) for line in lines)}; {SLEEPER}"
    suites.append(running := Running(tmp_path, f"noisy: {chatter}\nready: echo all set; exec sleep 60\n"))
    assert running.process.stdout is not None
    seen = [running.process.stdout.readline().rstrip() for _ in range(3)]
    assert seen[0].startswith("starting noisy; logs are in ")
    assert sorted(seen[1:]) == ["all set", "noisy: warning: careful error=E"]
    running.process.send_signal(signal.SIGTERM)
    assert running.end()[0] == 0
    assert all(line in (running.logs / "noisy.log").read_text() for line in lines)


@pytest.mark.parametrize("line", ["", "text", "{", '{"level": "info", "event": "x"}', "{}", "[1]"])
def test_other_lines_are_no_warnings(line: str) -> None:
    assert warning_of(line) is None


def test_the_callers_environment_wins_over_the_defaults() -> None:
    env = environment({"PATH": "/bin", "PRFAAS_DRAIN_S": "1", "PRFAAS_MODEL": "m"})
    assert env["PRFAAS_DRAIN_S"] == "1"
    assert env["PRFAAS_MODEL"] == "m"
    assert env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert env["TOKENIZERS_PARALLELISM"] == "false"


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes whose environment names this test's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"TEST_FOLDER={folder}" in (entry / "environ").read_text(errors="replace"):
                found.append((entry / "cmdline").read_text().replace("\0", " "))
    return found
