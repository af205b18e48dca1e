"""deploy.up with real processes: quiet while all is well, loud and truthful when it is not, nothing left behind."""

import asyncio
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.up import supervisor
from deploy.up.console import Console
from deploy.up.environment import environment
from deploy.up.restarts import RestartPolicy
from deploy.up.supervisor import Supervisor
from tests.support.processes import gone, processes_of
from tests.support.waiting import LIMIT_S, until

ROOT = Path(__file__).resolve().parents[4]
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

    def next_line(self) -> str:
        """Wait for the console's next line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip()

    def pid_of(self, name: str, life: int = 0) -> int:
        log = self.logs / f"{name}.log"
        give_up_at = time.monotonic() + LIMIT_S
        while time.monotonic() < give_up_at:
            if log.exists() and (text := log.read_text()).endswith("\n"):
                return int(text.split()[life])
            time.sleep(0.02)
        raise AssertionError(f"{name} wrote nothing")

    def end(self, timeout_s: float = LIMIT_S) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, output


@pytest.fixture
def suites() -> Iterator[list[Running]]:
    started: list[Running] = []
    yield started
    for running in started:
        with running.process as process:
            process.kill()


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
def test_a_process_that_ends_by_itself_is_named_and_started_again(
    tmp_path: Path, suites: list[Running], exit_code: int
) -> None:
    crash = f"test -e {tmp_path}/crashed || {{ touch {tmp_path}/crashed; echo out of luck; exit {exit_code}; }}"
    suites.append(running := Running(tmp_path, f"good: {SLEEPER}\nbad: {crash}; {SLEEPER}\n"))
    assert running.next_line().startswith("starting good, bad; logs are in ")
    assert running.next_line() == (
        f"bad ended unexpectedly (exit code {exit_code}), starting it again in 0.5 s. Its last lines:"
    )
    assert running.next_line() == "    out of luck"
    assert running.next_line() == "bad is started again"
    pid = running.pid_of("good")
    running.process.send_signal(signal.SIGTERM)
    code, output = running.end()
    assert (code, output) == (0, "stopping …\n")
    assert gone(pid)


async def test_a_process_that_was_killed_is_started_again(tmp_path: Path, suites: list[Running]) -> None:
    suites.append(running := Running(tmp_path, f"a: {SLEEPER}\n"))
    pid = running.pid_of("a")
    os.kill(pid, signal.SIGKILL)
    assert running.next_line().startswith("starting a")
    assert running.next_line().startswith("a ended unexpectedly (SIGKILL), starting it again")
    await until(lambda: len((running.logs / "a.log").read_text().split()) == 2)
    assert running.pid_of("a", life=1) != pid


def test_settings_that_are_bad_stop_the_suite_at_once(tmp_path: Path, suites: list[Running]) -> None:
    wait = f"until test -s {tmp_path}/logs/good.log; do sleep 0.1; done"
    suites.append(running := Running(tmp_path, f"good: {SLEEPER}\nbad: {wait}; echo bad settings; exit 2\n"))
    pid = running.pid_of("good")
    code, output = running.end()
    assert code == 1
    assert "bad ended unexpectedly (exit code 2), starting it again would not help: stopping the suite." in output
    assert "    bad settings\n" in output
    assert gone(pid)


async def test_a_process_that_dies_again_and_again_stops_the_suite(tmp_path: Path) -> None:
    shown = io.StringIO()
    console = Console(tmp_path / "logs", shown)
    commands = {"good": "echo $$; exec sleep 60", "bad": "echo once more >> lives; exit 3"}
    policy = RestartPolicy(first_delay_s=0.01)
    code = await Supervisor(commands, dict(os.environ), console, tmp_path, policy).run()
    console.close()
    assert code == 1
    assert (tmp_path / "lives").read_text() == 5 * "once more\n"
    assert "bad ended unexpectedly (exit code 3), 5 times within 60 s: stopping the suite." in shown.getvalue()
    assert not [line for line in shown.getvalue().splitlines() if line.startswith("good")]
    assert gone(int((tmp_path / "logs/good.log").read_text()))


def test_a_stop_during_a_delay_starts_nothing(tmp_path: Path, suites: list[Running]) -> None:
    suites.append(running := Running(tmp_path, "bad: echo x >> $TEST_FOLDER/lives; exit 1\n"))
    while "in 2 s" not in running.next_line():
        pass
    running.process.send_signal(signal.SIGINT)
    assert running.end() == (0, "stopping …\n")
    assert (tmp_path / "lives").read_text() == 3 * "x\n"


async def test_a_process_that_ignores_the_request_is_killed_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "KILL_AFTER_S", 0.1)
    shown = io.StringIO()
    console = Console(tmp_path, shown)
    suite = Supervisor({"stubborn": STUBBORN}, environment(os.environ), console, tmp_path)
    run = asyncio.create_task(suite.run())
    await until(lambda: (tmp_path / "stubborn.log").exists() and (tmp_path / "stubborn.log").read_text())
    os.kill(os.getpid(), signal.SIGINT)
    assert await run == 1
    console.close()
    assert shown.getvalue() == "stopping …\nstubborn did not stop cleanly (SIGKILL), see its log\n"
    assert gone(int((tmp_path / "stubborn.log").read_text()))


def test_a_second_signal_kills_at_once(tmp_path: Path, suites: list[Running]) -> None:
    suites.append(running := Running(tmp_path, f"stubborn: {STUBBORN}\n"))
    pid = running.pid_of("stubborn")
    assert running.next_line().startswith("starting")
    running.process.send_signal(signal.SIGINT)
    assert running.next_line() == "stopping …"
    running.process.send_signal(signal.SIGINT)
    code, output = running.end()
    assert code == 1
    assert output.splitlines()[0] == "killing stubborn"
    assert gone(pid)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="Linux with util-linux only")
async def test_whatever_kills_the_supervisor_nothing_is_left(tmp_path: Path, suites: list[Running]) -> None:
    suites.append(running := Running(tmp_path, f"a: {SLEEPER}\nstubborn: {STUBBORN}\n"))
    pids = [running.pid_of("a"), running.pid_of("stubborn")]
    running.process.kill()
    await until(lambda: all(gone(pid) for pid in pids))


@pytest.mark.parametrize("procfile", ["", "nonsense\n"])
def test_a_procfile_that_names_nothing_is_refused(tmp_path: Path, suites: list[Running], procfile: str) -> None:
    suites.append(running := Running(tmp_path, procfile))
    code, output = running.end()
    assert code == 2
    assert str(tmp_path / "Procfile") in output
