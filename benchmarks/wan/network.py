"""Sites joined by an emulated WAN: start processes in them, shape what lies between, ask what was carried."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import ROOT
from benchmarks.wan import kernel
from benchmarks.wan.line import Line
from benchmarks.wan.relay import address, start_line


class WanUnavailable(Exception):
    """This machine cannot have one; says why."""


class Carried(NamedTuple):
    """What one direction has carried so far."""

    num_bytes: int  # on the wire, with all headers
    num_frames: int
    num_dropped: int  # frames that found the queue full


class Wan:
    """A running WAN. `wan()` starts and ends it."""

    def __init__(self, process: "subprocess.Popen[bytes]", sites: Sequence[str], namespaces: Sequence[int]) -> None:
        self._process = process
        self._numbers = {site: number for number, site in enumerate(sites)}
        self._namespaces = dict(zip(sites, namespaces, strict=True))

    @property
    def pid(self) -> int:
        """The process that is the WAN."""
        return self._process.pid

    def address(self, site: str) -> str:
        """Return the IP address that a site has on the WAN."""
        return address(self._numbers[site])

    def command(self, site: str) -> list[str]:
        """Return what makes a command run in a site; it dies with the thread that starts it."""
        return ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={self._namespace(site)}", "--"]

    def inside(self, site: str) -> AbstractContextManager[None]:
        """Let this thread, and what it starts, be in a site."""
        return kernel.inside(self._namespace(site))

    def keep_to(self, cores: Sequence[int]) -> None:
        """Let the relay run on these cores only."""
        os.sched_setaffinity(self._process.pid, cores)

    def shape(self, line: Line) -> None:
        """Change what lies between the sites; frames on their way are not affected."""
        self._ask({"line": asdict(line)})

    def carried(self, source: str, target: str) -> Carried:
        pair = (self._numbers[source], self._numbers[target])
        (found,) = [c for c in self._ask({}) if (c["source"], c["target"]) == pair]
        return Carried(found["bytes"], found["frames"], found["dropped"])

    def _namespace(self, site: str) -> Path:
        return Path(f"/proc/{self._process.pid}/fd/{self._namespaces[site]}")

    def _ask(self, command: dict[str, Any]) -> list[dict[str, int]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()
        answer: list[dict[str, int]] = json.loads(self._process.stdout.readline())
        return answer


def congestion_controls() -> list[str]:
    """Return what namespaces may use here; the machine's own default is the last."""
    folder = Path("/proc/sys/net/ipv4")
    allowed = (folder / "tcp_allowed_congestion_control").read_text().split()
    default = (folder / "tcp_congestion_control").read_text().strip()
    return [*(name for name in allowed if name != default), default]


@contextmanager
def wan(sites: Sequence[str], line: Line, congestion: str = "") -> Iterator[Wan]:
    """Join sites for as long as the context lives. Raises `WanUnavailable`.

    `congestion` names TCP's congestion control inside, one of `congestion_controls()`; empty: what the machine has.

    The relay does both delay and loss, also where the kernel has `netem`: it loses single packets where `netem` loses
    whole offload frames of up to 64 KiB, and it is the same on every machine.
    """
    if os.geteuid() != 0:
        raise WanUnavailable("network namespaces need root")
    if missing := [program for program in ("ip", "nsenter", "setpriv") if shutil.which(program) is None]:
        raise WanUnavailable(f"not installed: {', '.join(missing)} (packages iproute2, util-linux)")
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.wan.relay"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(start_line(len(sites), line, congestion))
        process.stdin.flush()
        answer = json.loads(process.stdout.readline() or '{"error": "the relay did not start"}')
        if "error" in answer:
            raise WanUnavailable(f"no network namespace with a TAP here: {answer['error']}")
        yield Wan(process, sites, answer["namespaces"])
    finally:
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
        process.stdout.close()
