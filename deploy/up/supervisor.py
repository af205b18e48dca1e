"""Keeps processes running: starts again what died, ends all when that is asked for or when one cannot be kept alive."""

import asyncio
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from deploy.up.console import Console
from deploy.up.process import Process
from deploy.up.restarts import RestartPolicy, Restarts

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""SIGHUP too: a closed terminal must not leave the suite behind."""

KILL_AFTER_S = 8.0
"""Between asking and killing; well above PRFAAS_DRAIN_S of `make up`, even on a busy machine."""

EXIT_SETTINGS = 2
"""A process that ends with it says that it would end so again."""

ASKED_TO_STOP = {0, -signal.SIGTERM, 128 + signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGINT}
"""How a process that was asked to stop may end: by itself, or by the signal it was sent."""


class Supervisor:
    """Owns the processes of one run: when `run` returns, none of them is left."""

    def __init__(
        self,
        commands: Mapping[str, str],
        environ: Mapping[str, str],
        console: Console,
        folder: Path,
        policy: RestartPolicy | None = None,
    ) -> None:
        self._commands = commands
        self._environ = environ
        self._console = console
        self._folder = folder
        self._policy = policy or RestartPolicy()
        self._running: dict[str, Process] = {}
        self._stopping = asyncio.Event()
        self._failed = False

    async def run(self) -> int:
        """Run until a stop is asked for or a process is given up.

        Return 0 when a stop was asked for and every process obeyed in time, else 1.
        """
        loop = asyncio.get_running_loop()
        for signum in STOP_SIGNALS:
            loop.add_signal_handler(signum, self._on_signal)
        async with asyncio.TaskGroup() as group:
            keepers = [group.create_task(self._keep(name)) for name in self._commands]
            await self._stopping.wait()
            self._send(signal.SIGTERM)
            await asyncio.wait(keepers, timeout=KILL_AFTER_S)
            self._send(signal.SIGKILL)
        return 1 if self._failed else 0

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            self._console.say(f"killing {', '.join(self._running)}")
            self._send(signal.SIGKILL)
        else:
            self._console.say("stopping …")
            self._stopping.set()

    def _send(self, signum: signal.Signals) -> None:
        for process in self._running.values():
            process.send(signum)

    async def _keep(self, name: str) -> None:
        """Run a process again and again until the suite stops."""
        restarts = Restarts(self._policy)
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            started_s = loop.time()
            code = await self._run_once(name)
            if self._stopping.is_set():
                self._check_obeyed(name, code)
                return
            delay_s = None if code == EXIT_SETTINGS else restarts.died(started_s, loop.time())
            if delay_s is None:
                self._give_up(name, code)
                return
            self._tell_death(name, code, f"starting it again in {delay_s:g} s")
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._stopping.wait()
                    return
            self._console.say(f"{name} is started again")

    async def _run_once(self, name: str) -> int:
        process = await Process.start(self._commands[name], self._folder, self._environ)
        self._running[name] = process
        if self._stopping.is_set():  # since the start began
            process.send(signal.SIGTERM)
        code = await process.ended(lambda line: self._console.write(name, line))
        del self._running[name]
        return code

    def _give_up(self, name: str, code: int) -> None:
        policy = self._policy
        why = (
            "starting it again would not help"
            if code == EXIT_SETTINGS
            else f"{policy.max_deaths} times within {policy.window_s:g} s"
        )
        self._tell_death(name, code, f"{why}: stopping the suite")
        self._failed = True
        self._stopping.set()

    def _tell_death(self, name: str, code: int, consequence: str) -> None:
        lines = self._console.take_last_lines(name)
        said = " Its last lines:" if lines else " It said nothing."
        self._console.say(f"{name} ended unexpectedly ({ending(code)}), {consequence}.{said}", lines)

    def _check_obeyed(self, name: str, code: int) -> None:
        if code not in ASKED_TO_STOP:
            self._console.say(f"{name} did not stop cleanly ({ending(code)}), see its log")
            self._failed = True


def ending(code: int) -> str:
    """Return how a process ended in words."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
